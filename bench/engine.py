"""`python -m bench.engine [--old CLONE] [--new CLONE] [--quick] [WORK ...]`: old beside new.

Each CLONE holds its own .venv; --new is this one unless said otherwise, and without --old the new
one is measured alone. One after the other, old then new, work by work (local, sites, light), so
both see the same machine; nothing else should run. About ten minutes. Prints one table, ratios and
all, in Markdown; `probe.py` takes the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROBE = Path(__file__).parent / "probe.py"
WORKS = ("local", "sites", "light")
COUNTS = (10, 50, 200)
LIMIT_S = 60.0  # a run of light agents is cut then, once its first round is over
QUICK_COUNT = 20
Found = Mapping[str, Any]  # what a clone's probes said, by their name


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; `take` finds its number among a clone's figures, `more` says more."""

    name: str
    take: Callable[[Found], float]
    must: float
    aim: float
    digits: int = 2
    more: Callable[[Found], str] = lambda _: ""


def _median(probe: str) -> Callable[[Found], float]:
    return lambda found: float(statistics.median(found[probe]["rounds_s"]))


def _spread(numbers: Sequence[float], digits: int = 2) -> str:
    return f" ({min(numbers):.{digits}f}-{max(numbers):.{digits}f})"


def _light(count: int) -> Callable[[Found], float]:
    """Seconds a round, the first left out where there are more."""

    def take(found: Found) -> float:
        rounds = found[f"light {count}"]["rounds_s"]
        return float(statistics.median(rounds[1:] or rounds))

    return take


def _light_more(count: int) -> Callable[[Found], str]:
    def more(found: Found) -> str:
        told = found[f"light {count}"]
        rounds = told["rounds_s"]
        cut = f", cut after round {len(rounds)}" if told["cut"] else ""
        refused = f", {sum(told['refused'].values())} refusals" if told["refused"] else ""
        return _spread(rounds[1:] or rounds) + cut + refused

    return more


def _first(found: Found) -> list[float]:
    return [told["first_s"] for name, told in found.items() if name.startswith("local")]


def _cpu(found: Found) -> float:
    """Of the coordinator with 50 sites, and of a real agent."""
    return float(found["light 50"]["coordinator_ms"] + found["sites"]["agent_ms"])


def _kill(part: str) -> Row:
    must, aim = {"coordinator": (3.5, 3.0), "run process": (1.4, 1.0)}[part]

    def seconds(found: Found) -> list[float]:
        return list(found["sites"]["kill_s"][part])

    return Row(
        name=f"kill -9 to the next order, s: {part}",
        take=lambda found: statistics.median(seconds(found)),
        more=lambda found: _spread(seconds(found), 1),
        must=must,
        aim=aim,
        digits=1,
    )


ROWS = (
    Row(
        name="digits, 3 sites, train only, s a round",
        take=_median("local train"),
        more=lambda found: _spread(found["local train"]["rounds_s"]),
        must=0.15,
        aim=0.10,
    ),
    Row(
        name="digits, 3 sites, train + evaluate, s a round",
        take=_median("local evaluate"),
        more=lambda found: _spread(found["local evaluate"]["rounds_s"]),
        must=0.30,
        aim=0.20,
    ),
    Row(
        name="command to end of round 1, s",
        take=lambda found: statistics.median(_first(found)),
        more=lambda found: _spread(_first(found), 1),
        must=6,
        aim=5,
        digits=1,
    ),
    *(
        Row(
            name=f"{count} light agents, s a round",
            take=_light(count),
            more=_light_more(count),
            must=must,
            aim=aim,
        )
        for count, must, aim in zip(COUNTS, (0.3, 1.5, 8), (0.2, 0.8, 4), strict=True)
    ),
    Row(
        name="CPU of coordinator (50 sites) and agent together, ms an agent and round",
        take=_cpu,
        more=lambda found: (
            " (coordinator at "
            + " / ".join(str(count) for count in COUNTS)
            + ": "
            + " / ".join(f"{found[f'light {count}']['coordinator_ms']:.0f}" for count in COUNTS)
            + f"; agent {found['sites']['agent_ms']:.0f}; both with 3 sites "
            + f"{found['sites']['coordinator_ms'] + found['sites']['agent_ms']:.0f})"
        ),
        must=60,
        aim=40,
        digits=0,
    ),
    _kill("coordinator"),
    _kill("run process"),
    Row(
        name="processes of a three-site local run",
        take=lambda found: found["local train"]["processes"],
        must=9,
        aim=8,
        digits=0,
    ),
    Row(
        name="an agent's memory, idle, MB resident",
        take=lambda found: found["sites"]["idle_mb"]["rss"],
        more=lambda found: (
            f" (its share {found['sites']['idle_mb']['pss']:.0f}; after the run"
            f" {found['sites']['after_mb']['rss']:.0f}, {found['sites']['after_mb']['pss']:.0f})"
        ),
        must=75,
        aim=60,
        digits=0,
    ),
)

LIGHT_ROWS: Mapping[str, Callable[[Found], str]] = {
    "doorbell to order, median (95 %), ms": lambda told: " ".join(
        form.format(1e3 * seconds)
        for form, seconds in zip(("{:.0f}", "({:.0f})"), told["doorbell_s"], strict=False)
    ),
    "coordinator: CPU an agent and round, ms": lambda told: f"{told['coordinator_ms']:.1f}",
    "the light agents themselves, ms": lambda told: f"{told['stand_in_ms']:.1f}",
    "daemon: memory, MB; threads": lambda told: (
        f"{told['daemon_mb']:.0f}; {told['daemon_threads']}"
    ),
    "took part, of each round": lambda told: str(sorted(set(told["took_part"])))[1:-1],
    "refusals": lambda told: ", ".join(f"{n} {code}" for code, n in told["refused"].items()) or "0",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("works", nargs="*", choices=[*WORKS, "all"], default="all")
    parser.add_argument("--old", type=Path, help="a clone of the version to compare with")
    parser.add_argument("--new", type=Path, default=ROOT, help="the clone to measure (this one)")
    parser.add_argument("--quick", action="store_true", help="few rounds and sites: a trial")
    options = parser.parse_args()
    works = WORKS if "all" in options.works else options.works
    clones = {"old": options.old, "new": options.new} if options.old else {"new": options.new}
    found: dict[str, dict[str, Any]] = {who: {} for who in clones}
    for name, work, words in _probes(works, quick=options.quick):
        for who, clone in clones.items():
            found[who][name] = _probe(who, clone.absolute(), name, work, words)
    if options.quick:
        print(f"A trial: few rounds, and {QUICK_COUNT} light agents where the table says more.")
    _show(found)
    for who, told in found.items():
        _show_light(who, told)


def _probes(works: Sequence[str], *, quick: bool) -> list[tuple[str, str, dict[str, Any]]]:
    """What is measured, in order: its name, probe.py's word for it, and the arguments."""
    probes: list[tuple[str, str, dict[str, Any]]] = []
    if "local" in works:
        rounds = 4 if quick else 20
        probes += [
            ("local train", "local", {"rounds": rounds, "evaluate": False}),
            ("local evaluate", "local", {"rounds": rounds, "evaluate": True}),
            ("local first", "local", {"rounds": 2, "evaluate": False}),
        ]
    if "sites" in works:
        kills = 1 if quick else 3
        probes.append(("sites", "sites", {"rounds": 5 if quick else 30, "kills": kills}))
    if "light" in works:
        for count, rounds in ((10, 20), (50, 12), (200, 6)):
            words = {"count": count, "rounds": rounds, "limit_s": LIMIT_S}
            if quick:
                words |= {"count": min(count, QUICK_COUNT), "rounds": 4}
            probes.append((f"light {count}", "light", words))
    return probes


def _probe(who: str, clone: Path, name: str, work: str, words: Mapping[str, Any]) -> dict[str, Any]:
    """Let a clone measure; return its figures, {} if it could not (which is said)."""
    began = time.monotonic()
    done = subprocess.run(
        [str(clone / ".venv" / "bin" / "python"), "-P", str(PROBE), work, json.dumps(words)],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(clone)},
    )
    seconds = f"{time.monotonic() - began:.0f} s"
    if done.returncode:
        print(f"{name}, {who}: failed with {done.returncode} after {seconds}", file=sys.stderr)
        return {}
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    print(f"{name}, {who}: {seconds}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def _show(found: Mapping[str, Found]) -> None:
    heads = [*found, *(["old / new"] if "old" in found else []), "must", "aim"]
    print("| work | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 1) + "|")
    for row in ROWS:
        numbers = {who: _number(row, told) for who, told in found.items()}
        if all(number is None for number in numbers.values()):
            continue  # not asked for
        cells = [_cell(row, numbers[who], told) for who, told in found.items()]
        if "old" in found:
            old, new = numbers["old"], numbers["new"]
            cells.append("" if old is None or not new else f"{old / new:.1f}")
        cells += [f"{row.must:g}", f"{row.aim:g}"]
        print(f"| {row.name} | " + " | ".join(cells) + " |")


def _show_light(who: str, found: Found) -> None:
    """Print what else is known of the light agents' runs."""
    names = [f"light {count}" for count in COUNTS if found.get(f"light {count}")]
    if not names:
        return
    print(f"\n| {who}: light agents | " + " | ".join(name.split()[1] for name in names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for title, cell in LIGHT_ROWS.items():
        print(f"| {title} | " + " | ".join(cell(found[name]) for name in names) + " |")


def _number(row: Row, found: Found) -> float | None:
    try:
        return row.take(found)
    except (KeyError, statistics.StatisticsError):  # not measured, or the probe failed
        return None


def _cell(row: Row, number: float | None, found: Found) -> str:
    if number is None:
        return "not measured"
    try:
        return f"{number:.{row.digits}f}{row.more(found)}"
    except KeyError:  # of what it says besides
        return f"{number:.{row.digits}f}"


if __name__ == "__main__":
    main()
