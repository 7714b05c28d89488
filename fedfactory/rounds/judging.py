"""Which round's model is best, and when there is no more to gain. Pure; released metrics only."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.run_plan import EvaluationRules
from fedfactory.rounds.state import Judgement


def judge(
    before: Judgement,
    rules: EvaluationRules,
    *,
    number: int,
    model: BlobRef,
    metrics: Mapping[str, float],
) -> Judgement:
    """Return the judgement after round `number`. A round that was not measured changes nothing."""
    found = metrics.get(rules.metric)
    if found is None or not math.isfinite(found):
        return Judgement(
            value=None,
            best_round=before.best_round,
            best_model=before.best_model,
            best_value=before.best_value,
            mark=before.mark,
            still=before.still,
        )
    best = before.best_value is None or _gain(rules, before.best_value, found) > 0
    moved = before.mark is None or _gain(rules, before.mark, found) > rules.min_delta
    return Judgement(
        value=found,
        best_round=number if best else before.best_round,
        best_model=model if best else before.best_model,
        best_value=found if best else before.best_value,
        mark=found if moved else before.mark,
        still=0 if moved else before.still + 1,
    )


def _gain(rules: EvaluationRules, old: float, new: float) -> float:
    return new - old if rules.higher_is_better else old - new


def why_enough(found: Judgement, rules: EvaluationRules, number: int) -> str | None:
    """Return why the run may end after round `number`, None if it may not."""
    if rules.patience is None or found.still < rules.patience:
        return None
    by = f" by more than {rules.min_delta:g}" if rules.min_delta else ""
    last = f"{found.still} rounds measured" if found.still > 1 else "round measured"
    return (
        f"stopped early after round {number}: {rules.metric} did not improve{by} in the last {last}"
        f" (best {found.best_value:.6g}, in round {found.best_round})"
    )
