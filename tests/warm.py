"""A server that has imported the modules named once and forks a process for every command.

It reads one JSON request a line: {"args": [...], "env": {...}, "cwd": ..., "out": file, "err": file, "die_at": n, "stop_at": n, "events": file},
and answers {"pid": n}; {"wait": pid} answers {"status": ...} (negative: the signal). `args` are those of `python`:
["-m", "amatax", ...] or a script and its arguments. The server itself never merges, so a child begins with no threads of
torch; it ends one that is not done after LIMIT seconds, and waits at most that long for it. With `die_at` (or `stop_at`) the child sends itself SIGKILL (SIGSTOP) just before its n-th event on
a file below `cwd` (open for writing, rename, remove, mkdir, rmdir), which Python's audit hooks tell; with `events` it writes
how many there were.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

LIMIT = 300.0

CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "shutil.copyfile",
    "shutil.rmtree",
    "os.link",
}


def watch(cwd: str, die_at: int, stop_at: int, events: str | None) -> None:
    """Count changes of files; die before the one wanted."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            if not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in CHANGES:
            return
        if not str(args[0]).startswith((cwd, "lock")) and event != "os.rmdir":
            return
        seen += 1
        if events is not None:
            os.pwrite(log, f"{seen}\n{event} {args[0]}\n".encode(), 0)
        if seen == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if seen == stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)

    log = os.open(events, os.O_RDWR | os.O_CREAT, 0o600) if events else -1
    sys.addaudithook(hook)


def child(request: dict[str, Any]) -> None:
    """One command, as `python ARGS` runs it; never returns."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the requests are the server's
        for name, stream in (("out", 1), ("err", 2)):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        from amatax.__main__ import main

        signal.signal(signal.SIGINT, signal.default_int_handler)  # what comes before is not the command's
        if request["die_at"] or request["stop_at"] or request["events"]:
            watch(request["cwd"], request["die_at"], request["stop_at"], request["events"])
        match request["args"]:
            case ["-m", "amatax", *args]:
                sys.argv = ["amatax", *args]
                sys.path[0] = request["cwd"]
                main()
            case [script, *args]:
                sys.argv = [script, *args]
                sys.path[0] = str(Path(script).resolve().parent)
                runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0 if done.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """The exit status of a child; one that hangs is killed."""
    deadline = time.monotonic() + LIMIT
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    if "transformers" not in sys.modules:
        importlib.import_module("huggingface_hub.hf_api")
        for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
            del sys.modules[name]  # it reads its environment when it is imported; what it imports does not
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"status": wait(request["wait"])}
        else:
            pid = os.fork()
            if pid == 0:
                child(request)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
