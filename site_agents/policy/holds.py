"""How long and how much a run, a coordinator or a release without privacy may bind a lineage. Pure.

An admitted run holds its whole plan. So a plan has an end that the site bounds, one coordinator
holds no more than a share, and a run that sends no orders loses what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fedfactory.contracts.errors import ValueRangeError
from site_agents.policy.nodes import Place

Unbounded = Literal["allow", "refuse"]
UNBOUNDED: Final[tuple[Unbounded, ...]] = ("allow", "refuse")
LIMIT_KEYS: Final = ("plan_days", "silent_days")
PRIVACY_KEYS: Final = ("hold_share", "unbounded_lineage")
DAY_S: Final = 24 * 3600.0
MOST_DAYS: Final = 366


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

    plan_days: float = 31.0
    silent_days: float = 7.0
    hold_share: float = 0.5
    unbounded_lineage: Unbounded = "allow"

    def __post_init__(self) -> None:
        for key in LIMIT_KEYS:
            if not 0 < getattr(self, key) <= MOST_DAYS:
                found, expected = getattr(self, key), f"days above 0, at most {MOST_DAYS}"
                raise ValueRangeError(f"limits.{key}", found, expected)
        if not 0 < self.hold_share <= 1:
            raise ValueRangeError(
                "privacy.hold_share", self.hold_share, "a share above 0, at most 1"
            )
        if self.unbounded_lineage not in UNBOUNDED:
            expected = f"one of {', '.join(UNBOUNDED)}"
            raise ValueRangeError("privacy.unbounded_lineage", self.unbounded_lineage, expected)


DEFAULT_HOLDS: Final = Holds()


def read_holds(limits: Mapping[str, Place], privacy: Mapping[str, Place]) -> Holds:
    """Return what the two sections say; a key that is missing has its default.

    Raises:
        PolicyFileError: a value of another form.
    """
    unbounded = privacy.get("unbounded_lineage")
    return Holds(
        plan_days=_number(limits, "plan_days", DEFAULT_HOLDS.plan_days),
        silent_days=_number(limits, "silent_days", DEFAULT_HOLDS.silent_days),
        hold_share=_number(privacy, "hold_share", DEFAULT_HOLDS.hold_share),
        unbounded_lineage=(
            unbounded.word(UNBOUNDED) if unbounded else DEFAULT_HOLDS.unbounded_lineage
        ),
    )


def _number(at: Mapping[str, Place], key: str, default: float) -> float:
    return at[key].number() if key in at else default


def limit_lines(holds: Holds) -> list[str]:
    """Return the lines under `limits`."""
    return [
        "  # A run's signed plan ends within plan_days; a run that sends no order for silent_days",
        "  # loses the privacy budget that it holds and has not used.",
        f"  plan_days: {holds.plan_days!r}",
        f"  silent_days: {holds.silent_days!r}",
    ]


def privacy_lines(holds: Holds) -> list[str]:
    """Return the lines under `privacy`."""
    return [
        "  # The most of epsilon_per_lineage that one coordinator's open runs hold together.",
        f"  hold_share: {holds.hold_share!r}",
        "  # Updates that left without differential privacy void a lineage's bound; runs with it",
        "  # are then taken (allow; every statement says 'no bound') or not (refuse).",
        f"  unbounded_lineage: {holds.unbounded_lineage}",
    ]
