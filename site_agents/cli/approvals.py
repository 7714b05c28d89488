"""`site-agent approvals`: list what waits for a person, or show one against its plan."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_forms, print_json
from fedfactory.contracts.codec import encode
from site_agents.approvals import Approvals, Waiting
from site_agents.cli.home import add_home, find_home
from site_agents.comparison import Line, compare, tensor_lines

HEADINGS = ("ID", "WAITS", "RUN", "ROUND", "KIND", "TASK", "BYTES", "DECIDED")


def main(words: Sequence[str]) -> int:
    """List what waits, oldest first, or show one; return 0."""
    parser = Arguments(
        prog="site-agent approvals",
        description="List the results that wait for a person before they leave, or show one,"
        " line by line against its run's signed plan.",
    )
    add_home(parser)
    parser.add_argument("id", nargs="?", metavar="ID", help="show one")
    add_forms(parser)
    asked = parser.parse_args(words)
    approvals = Approvals(find_home(asked.home))
    waiting = approvals.waiting() if asked.id is None else (approvals.find(asked.id),)
    for path in approvals.damaged():
        print(f"{path} does not hold: it approves nothing, the agent asks again", file=sys.stderr)
    if asked.json:
        print_json([_plain(one) for one in waiting])
    elif asked.quiet:
        for one in waiting:
            print(one.leaving.id)
    elif asked.id is not None:
        print("\n".join(shown(waiting[0])))
    elif waiting:
        print("\n".join(columns([HEADINGS, *(_row(one) for one in waiting)])))
    else:
        print("nothing waits for approval")
    return 0


def shown(one: Waiting) -> list[str]:
    """Return what a person reads before they decide: all that leaves, beside the plan."""
    leaving = one.leaving
    lines = compare(leaving)
    beside = [*lines, *tensor_lines(leaving)]
    unfit = [line.what for line in beside if not line.fits]
    rows = [("", "PLANNED", "LEAVES", ""), *(_compared(line) for line in beside)]
    return [
        f"{leaving.id}: {leaving.kind} for run {leaving.run_id} of {leaving.coordinator}",
        f"data: source {leaving.source or 'none'}, lineage {leaving.lineage or 'none'}",
        f"plan {leaving.terms_digest}",
        f"update {leaving.update}",
        f"decided: {_decided(one)}",
        "",
        *columns(rows),
        "",
        f"outside the plan: {', '.join(unfit)}" if unfit else "all of it is as planned",
    ]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _compared(line: Line) -> tuple[str, str, str, str]:
    return (line.what, line.planned, line.leaves, "" if line.fits else "OUTSIDE THE PLAN")


def _row(one: Waiting) -> tuple[str, ...]:
    leaving = one.leaving
    return (
        leaving.id,
        _waits(time.time() - one.since),
        leaving.run_id,
        f"{leaving.round} of {leaving.plan.rounds}",
        leaving.kind,
        leaving.task,
        "0" if leaving.blob is None else f"{leaving.blob.bytes}",
        _decided(one),
    )


def _waits(seconds: float) -> str:
    minutes = int(max(0.0, seconds) / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


def _decided(one: Waiting) -> str:
    if (decision := one.decision) is None:
        return "no"
    word = "approved" if decision.approved else "denied"
    reason = f": {decision.reason!a}" if decision.reason else ""
    return f"{word} by {decision.by}{reason}"


def _plain(one: Waiting) -> dict[str, Any]:
    leaving = one.leaving
    lines = [*compare(leaving), *tensor_lines(leaving)]
    return {
        "id": leaving.id,
        **encode(one),
        "against_the_plan": [encode(line) for line in lines],
        "as_planned": all(line.fits for line in lines),
    }
