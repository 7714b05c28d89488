"""Runs, members and a site's record in words: tables and sentences. Pure; no terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

from fedfactory.contracts.questions import LogLine, SiteLogs
from fedfactory.contracts.refusals import REFUSALS
from fedfactory.report.reporter import Form
from fedfactory.report.terminal import shown
from fedfactory.wire.membership import Member
from fedfactory.wire.operations import STANDS, Finding, RunRow, Submitted

SOON_S: Final = 3 * 86400.0  # agents renew by themselves: a certificate this near its end did not
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))


def run_lines(rows: Sequence[RunRow], left_out: Sequence[str], now: float) -> list[str]:
    """Return the table of runs, then a sentence for each with trouble; `now` is Unix seconds."""
    if not rows and not left_out:
        return ["no runs yet: `fedfactory run` submits one"]
    table = [("RUN", "STATUS", "ROUND", "TASK", "STRATEGY", "SITES", "BY", "SUBMITTED")]
    table += [
        (
            row.run_id,
            row.status,
            f"{row.round} of {row.rounds}",
            row.task,
            row.strategy,
            str(len(row.sites)),
            row.operator,
            f"{span(now - row.submitted_at)} ago",
        )
        for row in rows
    ]
    reasons = [
        f"{row.run_id} {STANDS[row.status]}: {row.reason}"
        for row in rows
        if row.reason and row.status in ("suspended", "failed")
    ]
    damages = [f"{row.run_id} is damaged: {row.damage}" for row in rows if row.damage]
    told = [*reasons, *damages, *left_out]
    return [*(columns(table) if rows else []), *(shown(sentence) for sentence in told)]


def member_lines(members: Sequence[Member], now: float) -> list[str]:
    """Return the table of members, then a line for each that needs somebody."""
    table = [("NAME", "ROLE", "STATUS", "CONNECTED", "LAST SEEN", "CERTIFICATE UNTIL", "VERSION")]
    table += [
        (
            member.name,
            member.role,
            member.status,
            ("yes" if member.connected else "no") if member.role == "site" else "-",
            f"{span(now - member.seen_at)} ago" if member.seen_at is not None else "-",
            moment(member.valid_until) if member.valid_until is not None else "-",
            member.version or "-",
        )
        for member in members
    ]
    return [*columns(table), *warnings(members, now)]


def warnings(members: Sequence[Member], now: float) -> list[str]:
    """Return a sentence for each member that is cut off, turned away, or whose end comes soon."""
    told = []
    for member in members:
        who = f"{member.role} {member.name}"
        left = None if member.valid_until is None else member.valid_until - now
        if member.status == "revoked":
            told.append(f"{who} is revoked: {member.reason}")
        elif member.status == "expired" or (left is not None and left <= 0):
            told.append(f"{who} has expired: invite it again (fedfactory invite {member.name})")
        elif member.status == "enrolled" and member.reason:
            told.append(f"{who} is turned away: {member.reason}")
        elif member.status == "enrolled" and left is not None and left < SOON_S:
            told.append(f"{who} has a certificate for {span(left)} only: its agent should have"
                        " renewed it; ask its administrator for `site-agent status`")  # fmt: skip
        elif member.status == "invited" and left is not None:
            told.append(f"{who} has not enrolled yet; the invitation ends in {span(left)}")
    return [shown(line) for line in told]


def submitted_lines(submitted: Submitted, form: Form) -> list[str]:
    """Return what stands before a run's own lines: its id; as JSON with what speaks against it."""
    if form == "json":
        return [json.dumps(asdict(submitted))]
    if submitted.run_id is None:
        return []
    return [submitted.run_id if form == "quiet" else f"run {submitted.run_id}"]


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """Return a sentence for each site that cannot take part now, with the refusal's code."""
    return [
        shown(f"{found.site} cannot take part now: {found.sentence} ({found.code})")
        for found in findings
    ]


def log_lines(logs: SiteLogs | None, site: str) -> list[str]:
    """Return what a site lets out of its record of a run."""
    if logs is None:
        return [f"{site} did not answer: it is not connected, or is busy ending (fedfactory sites)"]
    if logs.status == "withheld":
        return [f"{site} lets nothing out of its record: its policy says `logs: none`"]
    if logs.status == "not_authorised":
        return [f"{site} does not believe that you may ask: its policy pins no such operator"]
    if not logs.lines:
        return [f"{site} has no record of this run"]
    rows = [("WHEN", "ROUND", "WORK", "OUTCOME", "SECONDS"), *map(_log_row, logs.lines)]
    return columns(rows)


def _log_row(line: LogLine) -> tuple[str, ...]:
    outcome = REFUSALS.get(line.outcome, line.outcome)
    seconds = "-" if line.seconds is None else f"{line.seconds:.1f}"
    at = datetime.fromtimestamp(line.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return at, str(line.round), line.kind, outcome, seconds


def span(seconds: float) -> str:
    """A duration for people, in its largest unit of which there are at least two."""
    whole = max(0, int(seconds))
    for size, unit in _UNITS:
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def moment(at: float) -> str:
    """A time (Unix seconds) for people, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines, every column as wide as its widest cell."""
    safe = [[shown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*safe, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in safe
    ]
