"""Hub repositories: the commit a revision stands for, and the files a merge needs, through huggingface_hub's own cache."""

from __future__ import annotations

import re
from pathlib import Path

from amatax.checkpoints.downloads import Download, bring, fetch_file
from amatax.checkpoints.hub_client import files_of
from amatax.checkpoints.hub_errors import hub_error, meant, unreachable
from amatax.checkpoints.side_names import is_side_file
from amatax.errors import HubError

WEIGHTS = re.compile(r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")


def fetch(model: str) -> tuple[Path, str, bool]:
    """Of a repository that has no headers to read (.bin files), or without a network: everything a merge reads, into the cache.

    Returns:
        The snapshot's folder, its commit, and whether the Hub said that this is all of it.

    Raises:
        HubError: naming the repository and the next step.
    """
    repo, _, revision = model.partition("@")
    try:
        try:
            commit, there = files_of(repo, revision)
        except Exception as error:
            if not unreachable(error):
                raise
            return *_cached(repo, revision), False
        files = {name: there[name] for name in needed(list(there))}
        if "config.json" not in files:
            raise HubError(f"{repo}: not a model (no config.json)", "check the id and the revision")
        folder = fetch_file(repo, "config.json", commit, files["config.json"][0]).parent
        bring(Download(repo, commit, revision, folder, files))
        return folder, folder.name, True
    except HubError:
        raise
    except Exception as error:
        raise hub_error(error, repo, revision) from error


def needed(files: list[str]) -> list[str]:
    """Of a repository's files those a merge reads: one set of weights (safetensors rather than .bin) and the side files."""
    weights = [file for file in files if WEIGHTS.fullmatch(file)]
    safe = [file for file in weights if ".safetensors" in file]
    single = [file for file in safe if file == "model.safetensors"]
    sides = [file for file in files if file not in weights and is_side_file(file) and ".index.json" not in file]
    return sorted((single or safe or weights) + sides)


def _cached(repo: str, revision: str) -> tuple[Path, str]:
    """The snapshot in the local cache; whether it has every file shows when it is opened."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision or None)
    if not isinstance(config, str):
        message = f"{repo}: is not in the local cache, and the Hub cannot be reached"
        hint = f"with a connection: `hf download {repo}{f' --revision {revision}' if revision else ''}`"
        raise HubError(message, hint + meant(repo))
    return Path(config).parent, Path(config).parent.name
