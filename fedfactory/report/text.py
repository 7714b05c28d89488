"""A run in words: one line per finished round, and what is going on now. Pure; no terminal."""

from __future__ import annotations

from fedfactory.rounds.history import History, Round


def number(value: float | None, digits: int) -> str:
    """A number for a table; a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share as percent with one decimal."""
    return "-" if value is None else f"{100 * value:.1f} %"


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.2f} GB"


def took_part(found: Round) -> str:
    """Who took part: names while they are few; who did not, and why."""
    took = [site for site, part in sorted(found.parts.items()) if part.status == "took_part"]
    missing = [
        f"{site}: {part.reason or part.status}"
        for site, part in sorted(found.parts.items())
        if part.status != "took_part"
    ]
    names = ", ".join(took) if len(took) <= 4 else f"{len(took)} of {len(found.parts)}"
    return f"{names or 'nobody'}{'; without ' + '; '.join(missing) if missing else ''}"


def round_line(found: Round) -> str:
    """One finished round in one line."""
    seconds = (found.ended_at or found.began_at) - found.began_at
    loss, accuracy = found.metrics.get("loss"), found.metrics.get("accuracy")
    measured = f"loss {number(loss, 4)}  accuracy {percent(accuracy):>7}  " if found.metrics else ""
    return f"round {found.number:>3}  {measured}{seconds:6.2f} s  {took_part(found)}"


def now_line(history: History) -> str:
    """What the run is doing."""
    current = history.current
    if history.plan is None or current is None:
        return "waiting"
    answered = [s for s, p in sorted(current.parts.items()) if p.status != "asked"]
    what, who = "training", answered
    if current.evaluating:
        what, who = "evaluating", sorted(current.evaluated)
    elif current.trained_at is not None:
        what = "aggregating"
    heard = f"{len(who)} of {len(current.parts)} answered"
    return f"round {current.number} of {history.plan.rounds}: {what}, {heard}"
