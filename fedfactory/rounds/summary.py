"""The run's results as plain values: a line per round, and summary.json. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from fedfactory.rounds.events import Finish
from fedfactory.rounds.guarantees import guarantees
from fedfactory.rounds.history import History, Part, Round

UNANSWERED: Final = "the run ended before it answered"


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
    done = [r["metrics"] for r in rounds if r["metrics"]["accuracy"] is not None]
    return {
        "run_id": plan.run_id,
        "status": end.status,
        "reason": end.reason,
        "task": plan.task,
        "strategy": plan.strategy,
        "seed": plan.seed,
        "sites": list(plan.sites),
        "seconds": history.last_at - history.started_at,
        "rounds": rounds,
        "final": done[-1] if done else _metrics({}),
        "baselines": None,
        "privacy": guarantees(plan.privacy, plan.sites, _rounds(history)),
        "bytes": {site: dict(counts) for site, counts in traffic.items()},
        "model": {"file": model_file, "digest": end.model.digest, "bytes": end.model.bytes},
        "never_took_part": list(history.never_took_part),
    }


def _rounds(history: History) -> tuple[Round, ...]:
    return (*history.rounds, history.current) if history.current else history.rounds


def round_entry(found: Round, now: float) -> dict[str, Any]:
    """Return one round's entry; `now` (Unix seconds) ends a round still under way."""
    trained = found.trained_at
    return {
        "round": found.number,
        "seconds": (found.ended_at or now) - found.began_at,
        "train_seconds": None if trained is None else trained - found.began_at,
        "sites": {site: _part(part) for site, part in sorted(found.parts.items())},
        "evaluations": {
            site: _part(part) for site, part in sorted((found.evaluations or {}).items())
        },
        "metrics": _metrics(found.metrics),
    }


def _part(part: Part) -> dict[str, Any]:
    asked = part.status == "asked"
    return {
        "status": "no_answer" if asked else part.status,
        "examples": part.examples,
        "seconds": part.seconds,
        "reason": UNANSWERED if asked else part.reason,
        "epsilon": part.privacy.epsilon_run if part.privacy else None,
    }


def _metrics(values: Mapping[str, float]) -> dict[str, float | None]:
    known = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return {"loss": None, "accuracy": None, **known}
