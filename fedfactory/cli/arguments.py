"""Arguments of a command: argparse, with its complaints in our one line, and the shell's Tab."""

from __future__ import annotations

import argparse
import os
from typing import Any, Final, NoReturn

from fedfactory.contracts.errors import UsageError

# Set by the shell (argcomplete's script) when it asks what could stand at the cursor.
COMPLETING: Final = "_ARGCOMPLETE"


class Arguments(argparse.ArgumentParser):
    """A parser that raises UsageError where argparse would print its usage and exit.

    When the shell asks for completions, parsing answers it and ends the process.
    """

    _answering = False

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found, with the way to the help."""
        raise UsageError(f"{message} ({self.prog} --help tells what there is)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; every way to parse comes through here."""
        self._answer_shell()
        return super().parse_known_args(args, namespace)

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; before argparse hides the positional arguments from itself."""
        self._answer_shell()
        return super().parse_known_intermixed_args(args, namespace)

    def _answer_shell(self) -> None:
        if COMPLETING in os.environ and not Arguments._answering:
            Arguments._answering = True  # argcomplete parses, too
            import argcomplete

            argcomplete.autocomplete(self)


def count(word: str) -> int:
    """Read a number of things, as argparse's `type`."""
    if not (word.isascii() and word.isdigit() and int(word)):
        raise argparse.ArgumentTypeError(f"'{word}': expected a whole number above 0")
    return int(word)
