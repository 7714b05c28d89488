"""Files that outlive versions of the program say which format they have, before all else."""

from __future__ import annotations

import json
from pathlib import Path

from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.versions import own_version


def check_format(path: Path, text: bytes, expected: int) -> None:
    """Check the `format` of a JSON file's text, whatever else it holds.

    Raises:
        UsageError: it has another format, or none.
    """
    try:
        found = json.loads(text)["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged: it does not say its format; put the last copy of the home back"
        ) from error
    if found != expected or isinstance(found, bool):
        raise UsageError(
            f"{path} has format {str(found)[:20]}, fedfactory {own_version()} reads {expected}: use"
            " the version that made it, or a newer one"
        )
