"""The entry of the command line: the commands, and what becomes of errors."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated, Final

import typer
import typer.main
from typer.exceptions import TyperException

import penstock
from penstock import config
from penstock.cli import output
from penstock.errors import PenstockError

__all__ = ["main"]

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130
_LEVELS = {name: name.upper() for name in ("debug", "info", "warning", "error")}

# Each is a function of its name in a module of its name.
_COMMANDS: Final = (
    *("pack", "resolve", "inspect", "verify", "verify-resume"),
    *("top", "bench", "coordinator", "xfer-bench", "doctor"),
)


def _app(names: Iterable[str]) -> typer.Typer:
    """With these commands only, since what one of them imports takes longer than many another has to do."""
    app = typer.Typer(
        help="Feed accelerators from storage, inside a memory budget that you set.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback(invoke_without_command=True)(_root)
    for name in names:
        own = name.replace("-", "_")
        app.command(name)(getattr(import_module(f"penstock.cli.{own}"), own))
    return app


def _wanted(arguments: Sequence[str]) -> Sequence[str]:
    """The command that is called; all of them for whoever needs a list."""
    if "--version" in arguments[:1]:
        return ()
    return [argument for argument in arguments if argument in _COMMANDS][:1] or _COMMANDS


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error; allowed anywhere.")] = False,
) -> None:
    del debug  # main() takes it out of the arguments before they are parsed
    if version:
        output.line(penstock.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        output.line(context.get_help())
        raise typer.Exit(_USAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        logging.basicConfig(level=config.choice("LOG", "WARNING", _LEVELS), format="penstock: %(message)s")
        code = _run([argument for argument in given if argument != "--debug"])
        if code == _INTERRUPTED:  # typer's own word for Ctrl-C
            output.complain("interrupted")
        return code
    except BrokenPipeError:
        # Whoever read our output has had enough (`penstock inspect ... | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except KeyboardInterrupt:
        output.complain("interrupted")
        return _INTERRUPTED
    except TyperException as error:
        output.complain(_usage_message(error))
        return _USAGE
    except PenstockError as error:
        return _fail(error, str(error), given, debug=debug)
    except Exception as error:
        where = "" if debug else "; run it again with --debug for the trace"
        return _fail(error, f"unexpected {type(error).__name__}: {error}{where}", given, debug=debug)


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(_app(_wanted(arguments)))
    code = command.main(arguments, prog_name="penstock", standalone_mode=False)
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _usage_message(error: TyperException) -> str:
    # What is raised is a click UsageError; typer carries click inside and doesn't export that name.
    message: str = getattr(error, "format_message", error.__str__)()
    context: typer.Context | None = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see {context.command_path if context else 'penstock'} --help"


def _fail(error: Exception, message: str, given: list[str], *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    output.complain(message)
    if "--json" in given:
        output.document({"error": {"type": type(error).__name__, "message": str(error)}})
    return _FAILED
