"""The life of a run as a picture, drawn from the machine's own table."""

from __future__ import annotations

from collections import defaultdict

from fedfactory.rounds.machine import PHASES, TABLE


def mermaid() -> str:
    """Return the phases and the events that lead from one to another, as a Mermaid diagram.

    Events that leave every phase for itself are left out.
    """
    arrows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (phase, event), transition in TABLE.items():
        for to in transition.to:
            if to != phase:
                arrows[phase, to].append(event.__name__)
    lines = ["stateDiagram-v2", f"    [*] --> {PHASES[0]}"]
    lines += [
        f"    {phase} --> {to}: {', '.join(arrows[phase, to])}"
        for phase in PHASES
        for to in PHASES
        if (phase, to) in arrows
    ]
    return "\n".join([*lines, f"    {PHASES[-1]} --> [*]", ""])
