"""How a run goes, as its operator asks and its coordinator does it: values, fixed before it begins.

What a run may ask of sites is in plans.py; a run's plan contains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedfactory.contracts.bounds import Count, Ordinal, Real, Seconds, Seed
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.plans import RunTerms, SignedPlan

Selection = Literal["all", "random", "size", "availability", "round_robin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRules:
    """Who is asked in a round, when it counts, and how long it waits.

    `quorum` is the number of sites that must give an update, `required` those that must be among
    them. `deadline_s` bounds each phase (train, evaluate) in seconds; a phase that lacks its quorum
    then waits up to `lateness_s` longer. `retries` is how often a site that failed for a passing
    reason is asked again in a phase, and how often a phase without its quorum begins anew.
    `select` chooses `per_round` sites (None: all there are), and `extra` more are asked than are
    waited for (over-selection). In async mode every `buffer` updates make a new model (FedBuff;
    Nguyen et al. 2022, algorithm 1); None in sync mode.
    """

    quorum: Ordinal
    required: tuple[str, ...]
    deadline_s: Seconds
    lateness_s: Seconds
    retries: Count
    select: Selection
    per_round: Ordinal | None
    extra: Count
    buffer: Ordinal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRules:
    """How each round's model is judged, on released metrics only.

    `metric` (the central measurement's where there is one, else the sites') tells the best model;
    `higher_is_better`. With `patience`, the run ends after so many rounds in which it moved by no
    more than `min_delta`. `keep` says which model the run ends with.
    """

    metric: str
    higher_is_better: bool
    patience: Ordinal | None
    min_delta: Real
    keep: Literal["last", "best"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a run is to do: fixed before its first round.

    `signed` are the terms that its operator signed: what the sites believe. The rest is how its
    coordinator makes the rounds. `central` is the public data set (NPZ) that the coordinator
    measures on, None for none. `checkpoints` is how many finished rounds' models are kept (the best
    one beside them). `max_examples` declares how many examples (under differential privacy: units)
    an answer of a site may count at most; a site that it does not name is not limited by it.
    """

    signed: SignedPlan
    seed: Seed
    rules: RoundRules
    evaluation: EvaluationRules
    central: BlobRef | None
    checkpoints: Ordinal
    max_examples: Mapping[str, Count]

    @property
    def terms(self) -> RunTerms:
        """What the run may ask of its sites."""
        return self.signed.terms

    @property
    def is_async(self) -> bool:
        """Whether no site waits for another."""
        return self.terms.mode == "async"
