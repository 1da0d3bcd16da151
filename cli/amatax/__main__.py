"""`amatax` and `python -m amatax`."""

import gc
import os
import sys


def main() -> None:
    """Run the command line and end the process; Ctrl-C is taken from the first import on."""
    gc.disable()  # one short job without cycles to speak of: collecting is 5 % of the start and more of a large plan
    code: int | str | None = 0
    try:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a terminal without block characters is no fault
        from amatax.commands import app

        app(prog_name="amatax")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    except SystemExit as error:
        code = error.code
    sys.exit(code) if "torch" not in sys.modules else _leave(code)


def _leave(code: int | str | None) -> None:
    """End at once: taking torch apart module by module takes half a second and frees what the process's end frees."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed by the caller
                stream.flush()
    except OSError:
        code = code or 2
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    main()
