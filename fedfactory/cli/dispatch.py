"""How both programs work: find a sub-command, load it alone, render known errors as one line.

Also what the shell asks for when a person presses Tab: the names of the commands here, the rest
from the command's own parser (arguments.py).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from fedfactory.cli.arguments import COMPLETING, Arguments
from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError, UnknownNameError

EXIT_OF_CLOSED_PIPE = 141  # as shells tell of a program that SIGPIPE ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program of sub-commands: each is a module `<package>.<command>` with `<entry>(words)`."""

    name: str
    about: str
    package: str
    entry: str
    commands: Mapping[str, str]
    notes: str

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run a sub-command; return its exit code."""
        words = list(sys.argv[1:] if arguments is None else arguments)
        return guarded(lambda: self._dispatch(words), program=self.name)

    def help(self) -> str:
        """Return what --help shows."""
        width = max(map(len, self.commands))
        return "\n".join(
            [
                f"usage: {self.name} COMMAND [ARGUMENT ...]",
                "",
                self.about,
                "",
                "commands:",
                *(f"  {name:<{width}}  {what}" for name, what in self.commands.items()),
                "",
                self.notes,
            ]
        )

    def _dispatch(self, words: Sequence[str]) -> int:
        if COMPLETING in os.environ:
            return self._complete()
        if not words or words[0] in ("-h", "--help"):
            print(self.help())
            return 0 if words else 2
        return self._command(words[0])(words[1:])

    def _command(self, name: str) -> Callable[[Sequence[str]], int]:
        if name not in self.commands:
            raise UnknownNameError("command", name, self.commands)
        command: Callable[[Sequence[str]], int] = getattr(
            import_module(f"{self.package}.{name}"), self.entry
        )
        return command

    def _complete(self) -> int:
        from argcomplete.lexers import split_line

        line, point = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
        typed: list[str] = split_line(line, point)[3]
        if len(typed) > 1:
            os.environ[COMPLETING] = "2"  # program and command stand before what is completed
            return self._command(typed[1])([])
        parser = Arguments(prog=self.name)
        commands = parser.add_subparsers()
        for name, what in self.commands.items():
            commands.add_parser(name, help=what)
        parser.parse_args([])
        return 0


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
