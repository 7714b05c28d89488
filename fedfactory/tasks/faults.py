"""What is wrong with records, in counts: for a site's administrator, never with a value of one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong with `count` of `total` records (or units, or values).

    `before` and `after` stand around the counts in its sentence, `example` behind them. Without
    differential privacy a fault that `stops` is an error; with it records count as null either way.
    """

    before: str
    after: str
    count: int
    total: int
    stops: bool = True
    example: str = ""

    @property
    def sentence(self) -> str:
        """Say it, as in 'column 'age': 3 of 60 values are no numbers'."""
        return f"{self.before}{self.count} of {self.total}{self.after}{self.example}"


class FaultCounts:
    """Adds faults of one kind together, piece by piece."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Fault] = {}

    def add(self, faults: Iterable[Fault]) -> None:
        """Count these too."""
        for fault in faults:
            key = (fault.before, fault.after)
            known = self._found.get(key, replace(fault, count=0, total=0))
            self._found[key] = replace(
                known, count=known.count + fault.count, total=known.total + fault.total
            )

    def all(self) -> tuple[Fault, ...]:
        """Return each kind once."""
        return tuple(self._found.values())
