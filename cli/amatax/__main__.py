"""`amatax` and `python -m amatax`."""

from amatax.commands import app


def main() -> None:
    """Run the command line."""
    app(prog_name="amatax")


if __name__ == "__main__":
    main()
