"""`amatax` and `python -m amatax`."""

import gc
import sys


def main() -> None:
    """Run the command line; Ctrl-C is taken from the first import on."""
    gc.disable()  # one short job without cycles to speak of: collecting is 5 % of the start and more of a large plan
    try:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a terminal without block characters is no fault
        from amatax.commands import app

        app(prog_name="amatax")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
