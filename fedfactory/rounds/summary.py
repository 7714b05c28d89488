"""The run's results as plain values: a line per round, and summary.json. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from fedfactory.rounds.events import Finish
from fedfactory.rounds.guarantees import guarantees
from fedfactory.rounds.history import History, Interruption, Round
from fedfactory.rounds.parts import Part, norm_ratios

UNANSWERED: Final = "the run ended before it answered"
BYTES_COUNT: Final = (
    "all that passed between the gateway and each site while the run had its place, also for runs"
    " beside it; from the coordinator's last start"
)


def metrics_line(history: History, number: int) -> dict[str, Any]:
    """Return one round's line for metrics.jsonl (and its entry in summary.json)."""
    found = next(r for r in reversed(_rounds(history)) if r.number == number)
    return round_entry(found, history.last_at)


def summary(
    history: History,
    end: Finish,
    *,
    traffic: Mapping[str, Mapping[str, int]],
    model_file: str | None,
) -> dict[str, Any]:
    """Return summary.json. `traffic` counts bytes down and up per site; times are in seconds."""
    plan = history.plan
    assert plan is not None
    rounds = [round_entry(r, history.last_at) for r in _rounds(history)]
    judged = history.judgement
    best = judged.best_round if end.model == judged.best_model else None
    done = [
        r["metrics"]
        for r in rounds
        if best in (None, r["round"]) and any(v is not None for v in r["metrics"].values())
    ]
    return {
        "run_id": plan.terms.run_id,
        "status": end.status,
        "reason": end.reason,
        "task": plan.terms.task,
        "strategy": plan.terms.strategy,
        "seed": plan.seed,
        "sites": list(plan.terms.sites),
        "seconds": history.last_at - history.started_at,
        "rounds": rounds,
        "final": done[-1] if done else _metrics({}),
        "best": _best(history),
        "baselines": None,
        "privacy": guarantees(plan.terms.privacy, plan.terms.sites, history.standings),
        "bytes": {site: dict(counts) for site, counts in traffic.items()},
        "bytes_count": BYTES_COUNT,
        "model": {"file": model_file, "digest": end.model.digest, "bytes": end.model.bytes},
        "never_took_part": list(history.never_took_part),
        "interruptions": [_interruption(found) for found in history.interruptions],
    }


def _best(history: History) -> dict[str, Any] | None:
    """Return the round with the best model and by what; None if none was measured."""
    found, plan = history.judgement, history.plan
    assert plan is not None
    if found.best_value is None:
        return None
    return {
        "round": found.best_round,
        "metric": plan.evaluation.metric,
        "value": found.best_value,
        "kept": plan.evaluation.keep == "best",
    }


def _interruption(found: Interruption) -> dict[str, Any]:
    return {"at": found.at, "round": found.round, "told": found.told}


def _rounds(history: History) -> tuple[Round, ...]:
    return (*history.rounds, history.current) if history.current else history.rounds


def round_entry(found: Round, now: float) -> dict[str, Any]:
    """Return one round's entry; `now` (Unix seconds) ends a round still under way."""
    trained = found.trained_at
    return {
        "round": found.number,
        "seconds": (found.ended_at or now) - found.began_at,
        "train_seconds": None if trained is None else trained - found.began_at,
        "sites": _parts(found.parts),
        "evaluations": _parts(found.evaluations or {}),
        "metrics": _metrics(found.shown_metrics),
        "central": _finite(found.central),
    }


def _parts(parts: Mapping[str, Part]) -> dict[str, Any]:
    ratios = norm_ratios(parts)
    return {site: _part(part, ratios.get(site)) for site, part in sorted(parts.items())}


def _part(part: Part, norm_ratio: float | None) -> dict[str, Any]:
    asked = part.status == "asked"
    return {
        "status": "no_answer" if asked else part.status,
        "examples": part.examples,
        "seconds": part.seconds,
        "code": part.code,
        "reason": UNANSWERED if asked else part.reason,
        "updates": part.updates,
        "staleness": part.staleness,
        "norm_l2": part.norm_l2,
        "norm_to_median": norm_ratio,
        "epsilon": part.privacy.epsilon_run if part.privacy else None,
    }


def _metrics(values: Mapping[str, float]) -> dict[str, float | None]:
    return {"loss": None, "accuracy": None, **_finite(values)}


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
