"""`amatax` and `python -m amatax`."""

import gc

from amatax.commands import app


def main() -> None:
    """Run the command line."""
    gc.disable()  # one short job without cycles to speak of: collecting is 5 % of the start and more of a large plan
    app(prog_name="amatax")


if __name__ == "__main__":
    main()
