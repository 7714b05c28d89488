"""The `fedfactory` command: finds the sub-command, renders every known error as one line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final

from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError, UnknownNameError

COMMANDS: Final = {
    "local": ("fedfactory.cli.local", "run a whole federation on this machine"),
    "report": ("fedfactory.cli.report", "print the results of a run folder again"),
    "privacy": ("fedfactory.cli.privacy", "plan which noise a run needs, before it runs"),
    "version": ("fedfactory.cli.version", "print the versions of fedfactory, Flower and torch"),
}
EXIT_OF_CLOSED_PIPE: Final = 141  # as shells tell of a program that SIGPIPE ended
EXIT_CODES: Final = """\
exit codes:
  0 completed   1 something broke here   2 wrong name, value or file
  3 the run failed   4 the run was stopped   130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _dispatch(words))


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        raise UnknownNameError("command", words[0], COMMANDS)
    command: Callable[[Sequence[str]], int] = import_module(COMMANDS[words[0]][0]).run
    return command(words[1:])


def guarded(command: Callable[[], int], *, program: str = "fedfactory") -> int:
    """Run a command; a known error becomes one line on standard error and its exit code.

    So does what the system refuses (a file, a full disk). A reader that has gone, as in `| head`,
    ends it without a word. A letter that the terminal's encoding lacks is shown as another.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()  # also what argparse's --help left in it
    except FedfactoryError as error:
        print(f"{program}: {error.public_message}", file=sys.stderr)
        if error.diagnostic:
            print(error.diagnostic, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        _discard_output()
        return EXIT_OF_CLOSED_PIPE
    except OSError as error:
        what = f"{error.filename}: " if error.filename is not None else ""
        print(f"{program}: {what}{error.strerror or error}", file=sys.stderr)
        _discard_output()
        return EnvironmentFailedError.exit_code
    except KeyboardInterrupt:
        return 130


def _discard_output() -> None:
    """Let nothing that is still unwritten fail again when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help() -> str:
    lines = [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fedfactory COMMAND [ARGUMENT ...]",
            "",
            "Federated learning across supercomputing sites.",
            "",
            "commands:",
            *lines,
            "",
            "fedfactory COMMAND --help tells more.",
            "",
            EXIT_CODES,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
