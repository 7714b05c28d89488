"""A run in words: one line per finished round, and what is going on now. Pure; no terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fedfactory.report.terminal import shown
from fedfactory.rounds.history import History, Round
from fedfactory.rounds.parts import NOT_MISSED
from fedfactory.rounds.summary import round_entry

FEW = 4


def number(value: float | None, digits: int) -> str:
    """A number for a table; a dash for none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share as percent with one decimal."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def measured(metric: str, value: float | None) -> str:
    """A model's quality: accuracy as percent, any other metric as a number."""
    return percent(value) if metric == "accuracy" else number(value, 4)


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.2f} GB"


def names(sites: Iterable[str]) -> str:
    """Names while they are few, else the first and how many more."""
    known = [shown(site) for site in sites]
    if len(known) <= FEW:
        return ", ".join(known)
    return f"{', '.join(known[: FEW - 1])} and {len(known) - FEW + 1} more"


def took_part(entry: Mapping[str, Any]) -> str:
    """Who took part in a round of metrics.jsonl, and who did not."""
    sites = entry["sites"]
    took = [site for site, part in sites.items() if part["status"] == "took_part"]
    asked = sum(part["status"] != "not_selected" for part in sites.values())
    who = names(took) if len(took) <= FEW else f"{len(took)} of {asked}"
    without = names(missing(sites))
    not_evaluated = names(missing(entry["evaluations"]))
    return (
        (who or "nobody")
        + (f"; without {without}" if without else "")
        + (f"; not evaluated by {not_evaluated}" if not_evaluated else "")
    )


def missing(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Who gave nothing in a phase though it was wanted, and why."""
    return {
        site: shown(part["reason"] or part["status"])
        for site, part in parts.items()
        if part["status"] not in NOT_MISSED
    }


def why_missing(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every (site, reason) of a round, training before evaluation."""
    trained, evaluated = missing(entry["sites"]), missing(entry["evaluations"])
    return [
        *trained.items(),
        *((site, f"did not evaluate: {reason}") for site, reason in evaluated.items()),
    ]


def rounds_of(count: int) -> str:
    """A number of rounds in words."""
    return "1 round" if count == 1 else f"{count} rounds"


def spans(numbers: Iterable[int]) -> str:
    """Ascending round numbers in short: 1-3, 7."""
    found: list[list[int]] = []
    for n in numbers:
        if found and found[-1][1] == n - 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def round_lines(found: Round) -> list[str]:
    """One finished round in one line, and one more for each site that gave nothing."""
    entry = round_entry(found, found.ended_at or found.began_at)
    loss, accuracy = entry["metrics"]["loss"], entry["metrics"]["accuracy"]
    metrics = found.shown_metrics
    measured = f"loss {number(loss, 4)}  accuracy {percent(accuracy):>7}  " if metrics else ""
    head = f"round {found.number:>3}  {measured}{entry['seconds']:6.2f} s  {took_part(entry)}"
    return [head, *(f"           {shown(site)}: {reason}" for site, reason in why_missing(entry))]


def now_line(history: History) -> str:
    """What the run is doing between RunStarted and its end."""
    current = history.current
    if history.plan is None or current is None:
        return "waiting"
    what = "model" if history.plan.is_async else "round"
    of = f"{what} {current.number} of {history.plan.terms.rounds}"
    if current.kind is None:
        return f"{of}: aggregating"
    what, parts = "training", current.parts
    if current.evaluations is not None:
        what, parts = "evaluating", current.evaluations
    awaited = sorted(site for site, part in parts.items() if part.status == "asked")
    wanted = sum(part.status != "not_selected" for part in parts.values())
    who = names(awaited) if len(awaited) <= FEW else f"{len(awaited)} of {wanted}"
    return f"{of}: {what}, waiting for {who}" if awaited else f"{of}: {what}"
