"""What a command prints: words, JSON for programs (--json), or ids and files alone (-q)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any


def add_json(parser: argparse.ArgumentParser, *, also_before: bool = False) -> None:
    """Add --json; `also_before`: the command that this one is part of has it, too."""
    default = argparse.SUPPRESS if also_before else False
    parser.add_argument(
        "--json", action="store_true", default=default, help="as JSON, for programs"
    )


def add_forms(parser: argparse.ArgumentParser, *, also_before: bool = False) -> None:
    """Add --json and -q; `also_before`: the command that this one is part of has them, too."""
    add_json(parser, also_before=also_before)
    parser.add_argument(
        *("-q", "--quiet"),
        action="store_true",
        default=argparse.SUPPRESS if also_before else False,
        help="only ids, files and errors",
    )


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(document, indent=1, allow_nan=False))


def say(line: str) -> None:
    """Tell a person beside what the command prints: on standard error."""
    print(line, file=sys.stderr, flush=True)


def tell(
    asked: argparse.Namespace,
    document: Mapping[str, Any],
    *,
    ids: Iterable[object] = (),
    words: Iterable[str],
) -> int:
    """Print what a command found or made in the form asked for; return 0."""
    if asked.json:
        print_json(document)
    else:
        for line in ids if asked.quiet else words:
            print(line)
    return 0


def tell_done(asked: argparse.Namespace, told: str, *hints: str, **about: object) -> int:
    """Print that it was done, and to a person what follows from it; return 0."""
    return tell(asked, {**about, "told": told}, words=(told, *hints))
