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
    code = _flushed(code)
    if "torch" not in sys.modules:
        sys.exit(code)
    # at once: taking torch apart module by module takes half a second and frees what the process's end frees
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _flushed(code: int | str | None) -> int | str | None:
    """Write out what is still in buffers; a full disk is said, a reader that has gone is none of our business."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # closed by the caller
                stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or Python tries once more
            if not isinstance(error, BrokenPipeError):
                print(f"amatax: the output: {error.strerror}", file=sys.stderr)
                print("  -> check the disk and the permissions", file=sys.stderr)
                code = code or 2
    return code


if __name__ == "__main__":
    main()
