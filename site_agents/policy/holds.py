"""Keys of the sections `limits` and `privacy` that have a default. Pure.

They say how long and how much a run, a coordinator or a release without privacy may bind a lineage:
an admitted run holds its whole plan. So a plan has an end that the site bounds, one coordinator
holds no more than a share, and a run that sends no orders loses what it holds.

A key is one field of Holds: its section, default, range, and the comment above it in policy.yaml.
Reader, writer and error texts follow from the field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from fedfactory.contracts.errors import ValueRangeError
from site_agents.policy.nodes import Place

Section = Literal["limits", "privacy"]
Unbounded = Literal["allow", "refuse"]
UNBOUNDED: Final[tuple[Unbounded, ...]] = ("allow", "refuse")
DAY_S: Final = 24 * 3600.0
MOST_DAYS: Final = 366


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """A number for which `accepts` is true, or one of `words` where there are any."""

    section: Section
    expected: str
    accepts: Callable[[float], bool] = math.isfinite
    words: tuple[str, ...] = ()
    comment: tuple[str, ...] = ()

    def fits(self, value: Any) -> bool:
        return value in self.words if self.words else self.accepts(value)


def _key(**said: Any) -> dict[str, _Key]:
    return {"key": _Key(**said)}


def _is_days(value: float) -> bool:
    return 0 < value <= MOST_DAYS


_PLAN_DAYS: Final = (
    "A run's signed plan ends within plan_days; a run that sends no order for silent_days",
    "loses the privacy budget that it holds and has not used.",
)
_UNBOUNDED: Final = (
    "Updates that left without differential privacy void a lineage's bound; runs with it",
    "are then taken (allow; every statement says 'no bound') or not (refuse).",
)
_DAYS: Final = f"days above 0, at most {MOST_DAYS}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holds:
    """The keys limits.plan_days, limits.silent_days, privacy.hold_share and .unbounded_lineage.

    A plan ends at most `plan_days` from now. A run of which no order came for `silent_days` loses
    what it holds. The open runs of one coordinator hold at most `hold_share` of a lineage's
    epsilon, though always one run's whole cap. `unbounded_lineage` says whether a run with
    differential privacy is taken on a lineage of which updates left without it.

    Raises:
        ValueRangeError: a value is out of range; `key` names it.
    """

    plan_days: float = field(
        default=31.0,
        metadata=_key(
            section="limits",
            accepts=_is_days,
            expected=_DAYS,
            comment=_PLAN_DAYS,
        ),
    )
    silent_days: float = field(
        default=7.0, metadata=_key(section="limits", accepts=_is_days, expected=_DAYS)
    )
    hold_share: float = field(
        default=0.5,
        metadata=_key(
            section="privacy",
            accepts=lambda value: 0 < value <= 1,
            expected="a share above 0, at most 1",
            comment=(
                "The most of epsilon_per_lineage that one coordinator's open runs hold together.",
            ),
        ),
    )
    unbounded_lineage: Unbounded = field(
        default="allow",
        metadata=_key(
            section="privacy",
            words=UNBOUNDED,
            expected=f"one of {', '.join(UNBOUNDED)}",
            comment=_UNBOUNDED,
        ),
    )

    def __post_init__(self) -> None:
        for name, key in KEYS.items():
            value = getattr(self, name)
            if not key.fits(value):
                raise ValueRangeError(f"{key.section}.{name}", value, key.expected)


KEYS: Final[Mapping[str, _Key]] = {one.name: one.metadata["key"] for one in fields(Holds)}
DEFAULT_HOLDS: Final = Holds()


def keys_of(section: Section) -> tuple[str, ...]:
    """Return the names of a section's keys."""
    return tuple(name for name, key in KEYS.items() if key.section == section)


def read_holds(sections: Mapping[Section, Mapping[str, Place]]) -> Holds:
    """Return what the sections say; a key that is missing has its default.

    Raises:
        PolicyFileError: a value of another form.
    """
    return Holds(
        **{
            name: _read(key, sections[key.section][name])
            for name, key in KEYS.items()
            if name in sections[key.section]
        }
    )


def _read(key: _Key, place: Place) -> Any:
    return place.word(key.words) if key.words else place.number()


def section_lines(section: Section, holds: Holds) -> Iterator[str]:
    """Yield the lines that a section's keys are in policy.yaml."""
    for name in keys_of(section):
        key, value = KEYS[name], getattr(holds, name)
        yield from (f"  # {line}" for line in key.comment)
        yield f"  {name}: {value if key.words else repr(value)}"
