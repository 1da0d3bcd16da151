"""The command line: each command parses, calls the api and prints. Errors become messages here and nowhere else."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from amatax import __version__
from amatax.commands import (
    check,
    distill,
    evaluate,
    fit_ratios,
    import_,
    inspect,
    merge,
    methods,
    push,
    recipes,
    schema,
    sweep,
    verify,
)
from amatax.errors import AmataxError, FaultsError

USER_FAULT, OUR_FAULT, INTERRUPTED = 2, 1, 130
CONTINUED = ("merge", "distill", "fit-ratios", "sweep", "push")  # commands that go on where they stopped


class _Group(TyperGroup):
    """Turns exceptions into one message, one next step and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AmataxError as error:
            if os.environ.get("AMATAX_DEBUG") == "1":
                traceback.print_exc()
            print_error(error)
            raise typer.Exit(USER_FAULT) from None
        except KeyboardInterrupt:
            after = ": the same command continues where it stopped" if ctx.invoked_subcommand in CONTINUED else ""
            print(f"\ninterrupted{after}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except (typer.Exit, typer.Abort):
            raise
        except OSError as error:  # what no stage expected is still the disk's or the rights', not a bug
            if os.environ.get("AMATAX_DEBUG") == "1":
                traceback.print_exc()
            print(f"amatax: {error.filename or 'the output'}: {error.strerror or error}", file=sys.stderr)
            print("  -> check the disk and the permissions", file=sys.stderr)
            raise typer.Exit(USER_FAULT) from None
        except Exception as error:
            if type(error).__module__.startswith(("click", "typer")):
                raise  # usage errors print themselves
            if os.environ.get("AMATAX_DEBUG") == "1":
                traceback.print_exc()
            print(f"amatax: a bug in amatax: {type(error).__name__}: {error}", file=sys.stderr)
            print("  -> run it again with AMATAX_DEBUG=1 and report what it prints", file=sys.stderr)
            raise typer.Exit(OUR_FAULT) from None


def print_error(error: AmataxError) -> None:
    """One message and one next step on stderr; several faults under a count."""
    if isinstance(error, FaultsError):
        count = len(error.faults)
        if count > 1:
            print(f"amatax: {count} faults", file=sys.stderr)
        for fault in error.faults:
            print(f"{'amatax: ' if count == 1 else ''}{fault}", file=sys.stderr)
        return
    print(f"amatax: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  -> {error.hint}", file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"amatax {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Group,
    help="Merge the checkpoints from before and after RLHF, block by block, to pay less alignment tax.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


for command in (
    merge,
    distill,
    fit_ratios,
    evaluate,
    sweep,
    push,
    inspect,
    verify,
    check,
    import_,
    recipes,
    schema,
    methods,
):
    app.command(name=command.__name__.rpartition(".")[2].strip("_").replace("_", "-"))(command.run)
