"""Reads summary.json back and checks that what is shown from it is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.errors import UsageError

_NUMBER: Final = (int, float, type(None))
NEEDED: Final[Mapping[str, type | tuple[type, ...]]] = {
    "status": str,
    "reason": str,
    "seconds": (int, float),
    "sites": list,
    "rounds": list,
    "final": dict,
    "baselines": (dict, type(None)),
    "bytes": dict,
    "model": dict,
    "privacy": dict,
    "never_took_part": list,
    "best": (dict, type(None)),
    "interruptions": list,
}
_ROUND: Final[Mapping[str, type | tuple[type, ...]]] = {
    "round": int,
    "seconds": (int, float),
    "sites": dict,
    "evaluations": dict,
    "metrics": dict,
}
_BEST: Final[Mapping[str, type | tuple[type, ...]]] = {
    "round": int,
    "metric": str,
    "value": (int, float),
    "kept": bool,
}
_BASELINES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "metric": str,
    "local_only": dict,
    "pooled": _NUMBER,
    "shared": _NUMBER,
}


def read_summary(path: Path) -> dict[str, Any]:
    """Return a run folder's summary.

    Raises:
        UsageError: it cannot be read, is not JSON, or a part is missing or of another kind.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: not there; the run is not over, or this is no run") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as JSON ({error})") from error
    try:
        _check_summary(found)
    except UsageError as error:
        raise UsageError(f"{path}: not the summary of a run; {error.public_message}") from error
    result: dict[str, Any] = found
    return result


def _check_summary(found: Any) -> None:
    _check(found, NEEDED, "the summary")
    for i, entry in enumerate(found["rounds"], 1):
        _check(entry, _ROUND, f"round entry {i}")
        _check(entry["metrics"], {"loss": _NUMBER, "accuracy": _NUMBER}, f"round entry {i} metrics")
        for kind in ("sites", "evaluations"):
            for site, part in entry[kind].items():
                _check(part, {"status": str, "reason": (str, type(None))}, f"round {i}, {site}")
    _check(found["final"], {"accuracy": _NUMBER}, "final")
    _check(found["model"], {"file": (str, type(None))}, "model")
    for site, moved in found["bytes"].items():
        _check(moved, {"down": int, "up": int}, f"bytes of {site}")
    if found["best"] is not None:
        _check(found["best"], _BEST, "best")
    for entry in found["interruptions"]:
        _check(entry, {"round": int, "told": str}, "interruptions")
    if found["baselines"] is not None:
        _check(found["baselines"], _BASELINES, "baselines")
    _check(found["privacy"], {"guarantee": str, "sites": dict}, "privacy")
    for site, holds in found["privacy"]["sites"].items():
        if holds is not None:
            _check(holds, {"epsilon_run": _NUMBER, "delta": _NUMBER}, f"privacy of {site}")


def _check(found: Any, form: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    if not isinstance(found, dict):
        raise UsageError(f"{where}: expected an object, found {type(found).__name__}")
    for name, kind in form.items():
        if name not in found:
            raise UsageError(f"{where}: {name} is missing")
        if not isinstance(found[name], kind):
            raise UsageError(f"{where}: {name} is a {type(found[name]).__name__}")
