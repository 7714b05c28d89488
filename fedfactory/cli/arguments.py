"""Arguments of a command: argparse, with its complaints in our one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from fedfactory.contracts.errors import UsageError


class Arguments(argparse.ArgumentParser):
    """A parser that raises UsageError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found, with the way to the help."""
        raise UsageError(f"{message} ({self.prog} --help tells what there is)")


def count(word: str) -> int:
    """Read a number of things, as argparse's `type`."""
    if not (word.isascii() and word.isdigit() and int(word)):
        raise argparse.ArgumentTypeError(f"'{word}': expected a whole number above 0")
    return int(word)
