"""What one site is to do in one phase, and how a strategy changes the run's own parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import UnknownNameError, ValueRangeError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import TrainParameters

PARAMETERS: Final = tuple(field.name for field in dataclasses.fields(TrainParameters))
_WHOLE: Final = ("local_epochs", "batch_size", "max_steps")
# A site refuses more than the operator signed (contracts/plans.py, RunTerms).
_SIGNED_MOST: Final = ("lr", "momentum")


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """What one site is to do: train (or, with `training` None, evaluate) from `base`.

    `base_path` is the file that holds `base`; the caller may take it away.
    """

    site: str
    training: TrainParameters | None
    base: BlobRef
    base_path: Path


def with_parameters(training: TrainParameters, changes: Mapping[str, object]) -> TrainParameters:
    """Return the signed `training` with a strategy's `changes`, by the names of its fields.

    Raises:
        UnknownNameError: no such parameter.
        ValueRangeError: a value of the wrong type, out of range, or above what is signed.
    """
    values = {name: _checked(name, value) for name, value in changes.items()}
    for name in _SIGNED_MOST:
        most = getattr(training, name)
        if values.get(name, most) > most:
            raise ValueRangeError(
                name,
                values[name],
                f"at most {most:g}, which the operator signed; {name}=... of the run raises it",
            )
    changed: TrainParameters = dataclasses.replace(training, **values)  # type: ignore[arg-type]
    return changed


def _checked(name: str, value: object) -> float:
    if name not in PARAMETERS:
        raise UnknownNameError("training parameter", name, PARAMETERS)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueRangeError(name, value, "a number")
    if name not in _WHOLE:
        return float(value)
    if value != int(value):
        raise ValueRangeError(name, value, "a whole number")
    return int(value)
