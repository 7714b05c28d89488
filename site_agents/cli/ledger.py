"""`site-agent ledger`: show what the privacy budget has spent, holds and has left; manage it."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fedfactory.cli.arguments import Arguments, count
from fedfactory.cli.forms import add_forms, print_json, tell_done
from fedfactory.contracts.codec import encode
from fedfactory.contracts.errors import FedfactoryError, UnknownNameError, UsageError
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.privacy import no_bound
from fedfactory.lease import LeaseHeldError, holder_of
from fedfactory.privacy.entries import Entry, RunKey, read_entry
from site_agents.cli.home import add_home, find_home
from site_agents.cli.recording import record
from site_agents.config import POLICY_FILE, load_agent_config
from site_agents.ledger import Ledger
from site_agents.person import person
from site_agents.policy import Policy
from site_agents.policy_file import load_policy
from site_agents.standing import LineageStanding, RunStanding, course, lineages, runs
from site_agents.unbounded import day_of

BAR: Final = 48
COURSE: Final = 32
LEVELS: Final = "▁▂▃▄▅▆▇█"
RECENT: Final = 10
RUN_HEADINGS: Final = ("RUN", "LINEAGE", "EPSILON", "STEPS", "STILL HELD")
ENTRY_HEADINGS: Final = ("ENTRY", "WHEN", "WHAT", "OF")


def main(words: Sequence[str]) -> int:
    """Show the ledger, or do what a sub-command asks; return 0."""
    asked = _parser().parse_args(words)
    home = find_home(asked.home)
    folder = load_agent_config(home, []).ledger
    if asked.what is None:
        return _show(home, folder, asked)
    by = person()
    if asked.what == "acknowledge-overlap":
        return _acknowledge(home, asked, by=by)
    if asked.what == "open-lineage":
        return _open_lineage(home, folder, asked, by=by)
    if asked.what == "accept-coordinator":
        return _accept_coordinator(home, folder, asked, by=by)
    if asked.what == "release":
        return _release(home, folder, asked, by=by)
    return _move(home, folder, asked, by=by)


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="site-agent ledger",
        description="Show what each lineage's privacy budget has spent, holds for admitted runs,"
        " and has left. The sub-commands change it; each is written to the audit chain.",
    )
    add_home(parser)
    add_forms(parser)
    parser.add_argument(
        "--recent", type=count, default=RECENT, metavar="N", help=f"newest entries ({RECENT})"
    )
    commands = parser.add_subparsers(dest="what", metavar="COMMAND", parser_class=Arguments)
    for name, argument, told in (
        ("open-lineage", "name", "give a population that no lineage covers a budget of its own"),
        ("release", "run", "give back what a run holds and has not reserved"),
        ("accept-coordinator", "name", "take its orders though it no longer sends receipts"),
        ("move", None, "take host, file and clock for right as they are now"),
    ):
        command = commands.add_parser(name, help=told, description=told)
        add_home(command, also_before=True)
        add_forms(command, also_before=True)
        if argument is not None:
            command.add_argument(argument, metavar=argument.upper())
        command.add_argument("--reason", required=True, metavar="TEXT", help="kept for good")
    told = "say that two lineages share no records although they seem to"
    command = commands.add_parser("acknowledge-overlap", help=told, description=told)
    add_home(command, also_before=True)
    add_forms(command, also_before=True)
    command.add_argument("lineages", nargs=2, metavar="LINEAGE")
    command.add_argument("--reason", required=True, metavar="TEXT", help="kept for good")
    return parser


# ---- what changes it -----------------------------------------------------------------------------


def _open_lineage(home: Path, folder: Path, asked: argparse.Namespace, *, by: str) -> int:
    name, reason = asked.name, asked.reason
    policy = load_policy(home / POLICY_FILE)
    delta, named = policy.delta, {rule.lineage for rule in policy.data.values()}
    if name not in named:
        # A slip here would stand in the ledger for good.
        raise UnknownNameError(f"lineage in {POLICY_FILE}", name, named)
    _refuse_overlap(home, name, policy)
    ledger = Ledger.open(folder)
    try:
        if name in ledger.budget.deltas:
            raise UsageError(f"lineage '{name}' is open already: its budget is the one it has")
        record(home, "lineage_opened", actor=by, reason=reason, lineage=name, delta=delta)
        ledger.open_lineage(name, delta, actor=by, reason=reason)
    finally:
        ledger.close()
    told = f"lineage '{name}' is open, at delta {delta:g} for good"
    return tell_done(asked, told, lineage=name, delta=delta)


def _accept_coordinator(home: Path, folder: Path, asked: argparse.Namespace, *, by: str) -> int:
    name, reason = asked.name, asked.reason
    ledger = Ledger.open(folder)
    try:
        if name not in ledger.budget.receipts:
            raise UnknownNameError("coordinator that sent a receipt", name, ledger.budget.receipts)
        record(home, "receipt_waived", actor=by, reason=reason, coordinator=name)
        ledger.waive_receipt(name, actor=by, reason=reason)
    finally:
        ledger.close()
    told = f"orders of coordinator '{name}' need no receipt, until it sends one again"
    return tell_done(asked, told, coordinator=name)


def _refuse_overlap(home: Path, lineage: str, policy: Policy) -> None:
    """Hold the lineage's data against every other's; what cannot be read yet is said, no more."""
    from site_agents.executors.inspecting import inspect

    config = load_agent_config(home, [])
    for name, rule in policy.data.items():
        if rule.lineage != lineage or name not in config.data:
            continue
        try:
            found = inspect(config, name, lineage, overlaps=True)
            unknown = found.unknown
        except FedfactoryError as error:
            found, unknown = None, str(error)
        if unknown:
            print(f"not held against other lineages: {unknown}", file=sys.stderr)
        elif found is not None and found.overlaps:
            raise UsageError(found.overlaps[0])


def _acknowledge(home: Path, asked: argparse.Namespace, *, by: str) -> int:
    from site_agents.overlaps import Acknowledged, acknowledge, sketched_lineages

    pair, reason = tuple(sorted(asked.lineages)), asked.reason
    known = {rule.lineage for rule in load_policy(home / POLICY_FILE).data.values()}
    if pair[0] == pair[1] or not known.intersection(pair):
        raise UsageError(f"{' and '.join(pair)}: expected two lineages, one of {POLICY_FILE}'s")
    known |= sketched_lineages(home)
    if slip := [name for name in pair if name not in known]:  # it would be kept for good
        raise UnknownNameError("lineage", slip[0], known)
    record(home, "overlap_acknowledged", actor=by, reason=reason, lineages=list(pair))
    acknowledge(home, Acknowledged(lineages=pair, by=by, reason=reason))
    told = f"the overlap of '{pair[0]}' and '{pair[1]}' is acknowledged: each has its own budget"
    return tell_done(asked, told, lineages=list(pair))


def _release(home: Path, folder: Path, asked: argparse.Namespace, *, by: str) -> int:
    reason = asked.reason
    ledger = Ledger.open(folder)
    try:
        run = find_run(tuple(ledger.budget.runs), asked.run)
        held = sum(ledger.budget.runs[run].held(time.time()).values())
        record(
            home,
            "hold_released",
            actor=by,
            reason=reason,
            coordinator=run.coordinator,
            run=run.run_id,
        )
        ledger.release(run, actor=by, reason=reason)
    finally:
        ledger.close()
    told = f"{held} steps that run {_name(run)} held are free; what it spent stays spent"
    return tell_done(asked, told, coordinator=run.coordinator, run=run.run_id, steps=held)


def _move(home: Path, folder: Path, asked: argparse.Namespace, *, by: str) -> int:
    reason = asked.reason
    if (holder := holder_of(home, "agent")) is not None:
        raise LeaseHeldError(home, "agent", holder)
    Ledger.move(folder, actor=by, reason=reason)  # it keeps who and why itself, too
    record(home, "ledger_moved", actor=by, reason=reason, ledger=str(folder))
    told = "the ledger holds here and now; any other copy of it must not be used again"
    return tell_done(asked, told, ledger=str(folder))


def find_run(known: Sequence[RunKey], asked: str) -> RunKey:
    """Return the admitted run that RUN or COORDINATOR/RUN names.

    Raises:
        UsageError: none is, or several coordinators have one.
    """
    found = [key for key in known if asked in (key.run_id, f"{key.coordinator}/{key.run_id}")]
    if len(found) != 1:
        names = ", ".join(map(_name, found or known))
        wrong = "is the run of several coordinators" if found else "was never admitted here"
        raise UsageError(f"'{asked}' {wrong}; known: {names or 'none'}")
    return found[0]


# ---- what shows it -------------------------------------------------------------------------------


def _show(home: Path, folder: Path, asked: argparse.Namespace) -> int:
    cap, silent_days = _caps(home)
    ledger = Ledger.open(folder)
    try:
        for lapse in ledger.budget.lapsing(time.time(), silent_days):
            ledger.budget.apply(lapse)  # shown as the next order finds it; nothing is written
        now, rows = time.time(), ledger.recent(ledger.sequence)
        entries: list[Entry] = [read_entry(row.kind, row.body) for row in rows]
        standings = lineages(ledger.budget, ledger.accountant, cap, now)
        every = max(1, -(-len(entries) // COURSE))
        courses = {
            one.lineage: course(entries, ledger.accountant, one.lineage, every) for one in standings
        }
        its_runs = runs(ledger.budget, ledger.accountant, now)
        recent = [
            (row.sequence, row.at, row.kind, entry)
            for row, entry in list(zip(rows, entries, strict=True))[-asked.recent :]
        ]
        if asked.json:
            about = {
                "ledger": ledger.budget.identifier,
                "sequence": ledger.sequence,
                "head": ledger.head,
                "accountant": ledger.accountant.name,
            }
            print_json(_plain(about, standings, courses, its_runs, recent))
        elif asked.quiet:
            for one in standings:
                print(one.lineage)
        else:
            print(f"ledger {ledger.budget.identifier}: {ledger.sequence} entries, {ledger.head}")
            print(f"epsilons by {ledger.accountant.name}")
            for one in standings:
                print("\n".join(["", *shown(one, courses[one.lineage])]))
            _tables(its_runs, recent)
    finally:
        ledger.close()
    return 0


def _caps(home: Path) -> tuple[float | None, float]:
    """Return the policy's cap and days of silence; a broken policy must not hide the ledger."""
    try:
        policy = load_policy(home / POLICY_FILE)
    except FedfactoryError as error:
        print(f"no cap is known, the agent takes no work: {error}", file=sys.stderr)
        return None, math.inf
    return policy.epsilon_per_lineage, policy.holds.silent_days


def shown(one: LineageStanding, over_time: Sequence[float]) -> list[str]:
    """Return one lineage as lines: its figures, a bar up to its cap, its course so far."""
    left = "" if one.left is None else f", left {one.left:.3g} of {one.cap:g}"
    figures = f"spent {one.spent:.3g}, held {one.held:.3g}{left}"
    if one.unprotected_at is not None:
        said = no_bound(one.unprotected_updates, day_of(one.unprotected_at))
        figures = f"{said}; with privacy {figures}"
    at = "not opened" if one.delta is None else f"at delta {one.delta:g}"
    lines = [f"lineage {one.lineage} {at}: {figures}"]
    if one.left is not None and one.cap:
        lines.append(f"  {bar(one.spent, one.held, one.cap)}")
    if one.spent > 0:
        lines.append(f"  {spark(over_time)}  spent, from the first entry to the last")
    return lines


def bar(spent: float, held: float, cap: float) -> str:
    """Return spent (█), held (▒) and left (·) as parts of a cap; what is over it is not drawn."""
    full = min(BAR, round(BAR * spent / cap))
    shaded = min(BAR, round(BAR * (spent + held) / cap)) - full
    return "█" * full + "▒" * shaded + "·" * (BAR - full - shaded)


def spark(values: Sequence[float]) -> str:
    """Return values from 0 up as one line of blocks."""
    most = max(values)
    return "".join(LEVELS[min(len(LEVELS) - 1, int(len(LEVELS) * v / most))] for v in values)


def _tables(
    its_runs: Sequence[RunStanding], recent: Sequence[tuple[int, float, str, Entry]]
) -> None:
    if its_runs:
        rows = [RUN_HEADINGS, *map(_run_row, its_runs)]
        print("\n".join(["", *_columns(rows)]))
    rows = [ENTRY_HEADINGS, *(_entry_row(*one) for one in recent)]
    print("\n".join(["", *_columns(rows)]))


def _run_row(one: RunStanding) -> tuple[str, ...]:
    until = f"{one.steps_held} until {_minute(one.expires_at)}" if one.steps_held else "-"
    return (
        _name(one.run),
        one.lineage,
        f"{one.epsilon:.3g}",
        str(one.steps_spent),
        "released" if one.released else "lapsed" if one.lapsed else until,
    )


def _entry_row(sequence: int, at: float, kind: str, entry: Entry) -> tuple[str, ...]:
    return str(sequence), _minute(at), kind, _subject(entry)


def _subject(entry: Entry) -> str:
    work, run = getattr(entry, "work", None), getattr(entry, "run", None)
    if work is not None:
        charge = getattr(entry, "charge", None)
        steps = f", {charge.steps} steps" if charge else ""
        return f"{_name(work)} round {work.round} {work.kind}{steps}"
    if run is not None:
        return _name(run)
    names = (getattr(entry, name, "") for name in ("lineage", "coordinator", "reason"))
    return shown_name(next(filter(None, names), ""))


def _plain(
    about: dict[str, Any],
    standings: Sequence[LineageStanding],
    courses: dict[str, tuple[float, ...]],
    its_runs: Sequence[RunStanding],
    recent: Sequence[tuple[int, float, str, Entry]],
) -> dict[str, Any]:
    return {
        **about,
        "lineages": [{**encode(one), "course": courses[one.lineage]} for one in standings],
        "runs": [encode(one) for one in its_runs],
        "recent": [
            {"sequence": sequence, "at": at, "kind": kind, "entry": encode(entry)}
            for sequence, at, kind, entry in recent
        ],
    }


def _name(of: RunKey | WorkKey) -> str:
    """Name a run; its id is the coordinator's choice, so nothing in it may steer the terminal."""
    return shown_name(f"{of.coordinator}/{of.run_id}")


def shown_name(name: str) -> str:
    """Return a name of somebody else's choosing, safe to print."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _minute(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
