"""How a run goes, as its operator asks and its coordinator does it: values, fixed before it begins.

What a run may ask of sites is in plans.py; a run's plan contains it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from fedfactory.contracts.bounds import MOST, Count, Ordinal, Real, Seconds, Seed
from fedfactory.contracts.errors import UnknownNameError, UsageError, ValueRangeError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.plans import Mode, RunTerms, SignedTerms

Selection = Literal["all", "random", "size", "availability", "round_robin"]

Keep = Literal["last", "best"]
MAX_ROUNDS: Final = 1_000_000
MAX_CHECKPOINTS: Final = 1_000_000
MAX_RETRIES: Final = 100
MAX_SECONDS: Final = 366 * 86400.0
MAX_SEED: Final = 2**63 - 1


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

    def __post_init__(self) -> None:
        _one_of("rounds.select", self.select, get_args(Selection))
        _seconds("rounds.deadline_s", self.deadline_s, "above")
        _seconds("rounds.lateness_s", self.lateness_s, "from")
        _within("rounds.retries", self.retries, 0, MAX_RETRIES)
        if self.select == "all" and self.per_round is not None:
            expected = "null with rounds.select=all; take another selection"
            raise ValueRangeError("rounds.per_round", self.per_round, expected)
        if self.select != "all" and self.per_round is None:
            expected = f"how many sites rounds.select={self.select} takes"
            raise ValueRangeError("rounds.per_round", None, expected)
        if self.per_round is None and self.extra != 0:
            expected = "0 where all sites are asked; set rounds.per_round"
            raise ValueRangeError("rounds.extra", self.extra, expected)

    def check(self, sites: Sequence[str], mode: Mode) -> None:
        """Check the rules for a run of this mode in which these sites may take part.

        Raises:
            UsageError: names the rule that cannot be kept, and what was expected.
        """
        many = len(sites)
        asked = many if self.per_round is None else self.per_round
        if not 1 <= asked <= many:
            raise ValueRangeError("rounds.per_round", self.per_round, number_of_sites(many))
        if not 1 <= self.quorum <= asked:
            raise ValueRangeError("rounds.quorum", self.quorum, number_of_sites(asked))
        if strangers := sorted(set(self.required) - set(sites)):
            raise UnknownNameError("site in rounds.required", strangers[0], sites)
        if len(set(self.required)) > asked:
            found = f"[{','.join(self.required)}]"
            raise ValueRangeError("rounds.required", found, f"at most {asked} sites (per_round)")
        _within("rounds.extra", self.extra, 0, many - asked)
        self._check_mode(many, mode)

    def _check_mode(self, many: int, mode: Mode) -> None:
        if mode == "sync":
            if self.buffer is not None:
                expected = "null; it is for rounds.mode=async"
                raise ValueRangeError("rounds.buffer", self.buffer, expected)
            return
        for key, found, only, expected in (
            ("rounds.quorum", self.quorum, 1, "null"),
            ("rounds.select", self.select, "all", "all"),
        ):
            if found != only:
                raise ValueRangeError(key, found, f"{expected} in rounds.mode=async")
        if self.buffer is None or not 1 <= self.buffer <= many:
            expected = f"a whole number from 1 to {many} in rounds.mode=async"
            raise ValueRangeError("rounds.buffer", self.buffer, expected)


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
    keep: Keep

    def __post_init__(self) -> None:
        _one_of("evaluation.keep", self.keep, get_args(Keep))
        if self.patience is not None:
            _within("evaluation.patience", self.patience, 1, MAX_CHECKPOINTS)
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise ValueRangeError("evaluation.min_delta", self.min_delta, "a number from 0")

    @property
    def judges(self) -> str | None:
        """The option, as written, for whose sake every round's model is measured; None: none."""
        if self.patience is not None:
            return f"evaluation.patience={self.patience}"
        return "evaluation.keep=best" if self.keep == "best" else None

    def check(self, mode: Mode, *, by_sites: bool, centrally: bool) -> None:
        """Check that there is something to judge each round's model by.

        Raises:
            UsageError: names the option that cannot be kept, and what to set.
        """
        if self.judges is None or centrally:
            return
        if mode == "async":
            raise UsageError(
                f"{self.judges}: in async mode the sites measure the last model only; give"
                " evaluation.central"
            )
        if not by_sites:
            raise UsageError(
                f"{self.judges}: nothing measures the models; set evaluate=true (under"
                " privacy=dp_sgd also privacy.evaluation_noise_multiplier), or give"
                " evaluation.central"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a run is to do: fixed before its first round.

    `signed` are the terms that its operator signed: what the sites believe. The rest is how its
    coordinator makes the rounds. `central` is the public data set (NPZ) that the coordinator
    measures on, None for none. `checkpoints` is how many finished rounds' models are kept (the best
    one beside them). `max_examples` declares how many examples (under differential privacy: units)
    an answer of a site may count at most; a site that it does not name is not limited by it.
    """

    signed: SignedTerms
    seed: Seed
    rules: RoundRules
    evaluation: EvaluationRules
    central: BlobRef | None
    checkpoints: Ordinal
    max_examples: Mapping[str, Count]

    def __post_init__(self) -> None:
        terms = self.terms
        if not terms.sites or list(terms.sites) != sorted(set(terms.sites)):
            found = f"[{','.join(terms.sites)}]"
            expected = "at least one, each name once, in alphabetical order"
            raise ValueRangeError("sites", found, expected)
        _within("rounds.number", terms.rounds, 1, MAX_ROUNDS)
        _within("seed", self.seed, 0, MAX_SEED)
        _within("checkpoints", self.checkpoints, 1, MAX_CHECKPOINTS)
        self.rules.check(terms.sites, terms.mode)
        self.evaluation.check(
            terms.mode, by_sites=terms.evaluate, centrally=self.central is not None
        )
        for site, most in self.max_examples.items():
            if site not in terms.sites:
                raise UnknownNameError("site", f"max_examples.{site}", terms.sites)
            _within(self._examples_key(site), most, 1, MOST)

    def _examples_key(self, site: str) -> str:
        """Return how a site's number is written: one number for all sites has no site's name."""
        one_for_all = len(self.max_examples) == len(self.terms.sites) > 1
        one_for_all = one_for_all and len(set(self.max_examples.values())) == 1
        return "max_examples" if one_for_all else f"max_examples.{site}"

    @property
    def terms(self) -> RunTerms:
        """What the run may ask of its sites."""
        return self.signed.terms

    @property
    def is_async(self) -> bool:
        """Whether no site waits for another."""
        return self.terms.mode == "async"


def number_of_sites(most: int) -> str:
    """Return what is expected of an option that counts sites."""
    return f"a whole number from 1 to {most} (sites), a fraction between 0 and 1, or null"


def _one_of(key: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise UnknownNameError(key, str(found), known)


def _within(key: str, found: int, least: int, most: int) -> None:
    if not least <= found <= most:
        shown = "2^53" if most == MOST else most
        raise ValueRangeError(key, found, f"a whole number from {least} to {shown}")


def _seconds(key: str, found: float, bound: Literal["above", "from"]) -> None:
    if not (0 <= found <= MAX_SECONDS and (bound == "from" or found > 0)):
        raise ValueRangeError(key, found, f"seconds {bound} 0, at most {MAX_SECONDS:.0f}")
