"""huggingface_hub's exceptions -> one message and the next step."""

from __future__ import annotations

import re
from pathlib import Path

from amatax.errors import HubError

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"

MAY_WRITE = "make a token that may write there (https://huggingface.co/settings/tokens), then `hf auth login`"


def unreachable(error: Exception) -> bool:
    """Whether there was no answer at all (offline mode, no network), whichever HTTP library huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    libraries = ("httpx", "httpx2", "httpcore", "httpcore2", "requests")
    transport = type(error).__module__.partition(".")[0] in libraries or isinstance(error, ConnectionError)
    return isinstance(error, OfflineModeIsEnabled) or (transport and not isinstance(error, HfHubHTTPError))


def hub_error(error: Exception, repo: str, revision: str, *, writing: bool = False) -> Exception:
    """What happened in one sentence, and what to do; what is no fault of the Hub's is returned as it is.

    Args:
        error: what huggingface_hub raised.
        repo, revision: what was asked for.
        writing: it was to be changed, not read.
    """
    from huggingface_hub import constants, errors

    if type(error) is RuntimeError and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # of an upload by LFS
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    said = re.sub(r"(?i)bearer \S+|hf_\w+", "(a token)", next(iter(str(error).splitlines()), repr(error)))
    said = re.sub(r"\?\S*(Signature|X-Amz)\S*", "", said)  # links that open something are nobody's to read
    own = str(getattr(error, "server_message", "") or "")
    retry = "run the same command again: what is finished is kept"
    answers = {
        401: (
            "the Hub does not know who is asking (no token, or a wrong or expired one)",
            f"{LOGIN}; `hf auth whoami` tells who you are",
        ),
        403: (f"this token may not write there{f' ({own})' if own else ''}", MAY_WRITE)
        if writing
        else ("access was refused", LOGIN),
        409: ("something else was written there meanwhile", "look at the repository, then " + retry),
        412: ("the branch has moved meanwhile", retry),
        429: ("the Hub asks for fewer requests (429)", f"wait some minutes, or {LOGIN}; then {retry}"),
    }
    cases: list[tuple[type[Exception], str, str]] = [
        (errors.LocalTokenNotFoundError, "nobody is logged in, and no token is given", LOGIN),
        (errors.GatedRepoError, "is gated", f"ask for access on its page, then {LOGIN}"),
        (errors.RevisionNotFoundError, f"has no revision {revision!r}", f"see its branches and tags: {constants.ENDPOINT}/{repo}/tree/main"),
        (errors.RepositoryNotFoundError, "does not exist, or is private", f"check the id; if it is private, {LOGIN}"),
        (errors.HFValidationError, "is no Hub id", "a Hub id is owner/name; a folder begins with ./, ../, / or ~"),
        (errors.LocalEntryNotFoundError, "is not in the local cache, and the Hub cannot be reached", f"`hf download {repo}`"),
    ]  # fmt: skip
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        cases.insert(0, (Exception, f"a file is not there: {str(error).splitlines()[-1]}", "is the upload complete?"))
    if writing and status == 401:
        cases = []
    if status in answers:
        cases.append((errors.HfHubHTTPError, *answers[status]))
    elif status >= 500:
        cases.append((errors.HfHubHTTPError, f"the Hub has trouble of its own ({status})", f"later, {retry}"))
    cases.append((errors.HfHubHTTPError, f"the Hub said no: {said}", LOGIN))
    if writing and isinstance(error, ValueError) and "metadata" in str(error):
        because = " ".join(str(error).split())
        cases.insert(0, (ValueError, f"the Hub refuses the model card: {because}", "see what the inputs' cards say"))
    by_xet = type(error) is RuntimeError and "rror" in said and not constants.HF_HUB_DISABLE_XET
    if by_xet:
        hint = "run it again; HF_HUB_DISABLE_XET=1 goes without xet"
        cases.insert(0, (RuntimeError, f"the transfer by xet failed ({said})", hint))
    if unreachable(error) and (told := re.search(r"\b(400|401|403)\b", said)):
        cases.insert(0, (Exception, f"the Hub's storage said no ({told[1]})", MAY_WRITE if writing else LOGIN))
    elif unreachable(error):
        offline = isinstance(error, errors.OfflineModeIsEnabled)
        hint = "unset HF_HUB_OFFLINE" if offline else "check the connection; " + retry
        cases.insert(0, (Exception, "offline mode is on" if offline else f"the Hub stopped answering ({said})", hint))
    cases.append(
        (
            OSError,
            f"could not be {'written' if writing else 'fetched'}: {said}",
            "check the connection and the disk, and run it again",
        )
    )
    for kind, message, hint in cases:
        if isinstance(error, kind):
            return HubError(f"{repo}: {message}", hint + ("" if writing else meant(repo)))
    return error


def meant(repo: str) -> str:
    """A folder of that name may have been meant."""
    return f"; the folder ./{repo} exists: write ./{repo} to mean it" if Path(repo).exists() else ""
