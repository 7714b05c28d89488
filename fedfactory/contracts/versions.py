"""Which versions of fedfactory speak with each other, and which run's files this one reads.

Versions of the same major and neighbouring minor number speak with each other. A run's files have
one form; a run of another form is refused by name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Final

from fedfactory.contracts.errors import ProtocolError, RefusedError

MINORS_APART: Final = 1
# The form of submission.json, settings.json, journal.sqlite and events.jsonl. Form 1 named none:
# answers held their update's fields, and a plan repeated its terms'.
RUN_FORM: Final = 2
_VERSION: Final = re.compile(r"(\d{1,6})\.(\d{1,6})([.\-+a-z][0-9a-zA-Z.\-+]{0,48})?")


@functools.cache
def own_version() -> str:
    """Return the version of this installation."""
    return metadata.version("fedfactory")


class OtherFormError(RefusedError):
    """A run whose files have another form than those that this version writes."""


def form_stamp() -> dict[str, int | str]:
    """Return what a file of a run says of its form: the form, and the version that wrote it."""
    return {"form": RUN_FORM, "version": own_version()}


def check_form(run_id: str, raw: Mapping[str, object]) -> None:
    """Check the form of a run's file; `raw` is its JSON object.

    Raises:
        OtherFormError: names the run, the version that began it, and what to do.
    """
    if (form := raw.get("form", 1)) == RUN_FORM:
        return
    version = raw.get("version")
    by = f"fedfactory {version}" if isinstance(version, str) else "an older version of fedfactory"
    raise OtherFormError(
        f"the run {run_id} was begun by {by}: its files have form {form}, and {own_version()} reads"
        f" form {RUN_FORM}; let that version finish it, or start a new run from its last model"
        f" (model={run_id})"
    )


def check_versions(theirs: str, ours: str) -> None:
    """Let a peer of version `theirs` speak with us.

    Raises:
        ProtocolError: no version, another major one, or more than a minor one apart. The sentence
            is the peer's to read.
    """
    their_major, their_minor = _parsed(theirs)
    our_major, our_minor = _parsed(ours)
    if their_major != our_major or abs(their_minor - our_minor) > MINORS_APART:
        older = (their_major, their_minor) < (our_major, our_minor)
        raise ProtocolError(
            f"fedfactory {theirs} here and {ours} at the coordinator do not work together:"
            f" neighbouring minor versions do; bring {'yours' if older else 'the coordinator'} up"
            " to date"
        )


def _parsed(version: str) -> tuple[int, int]:
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ProtocolError("the caller does not say which version of fedfactory it is")
    return int(match[1]), int(match[2])
