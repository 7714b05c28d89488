"""`site-agent status`: what the site's agent does now and did last; also while it is down."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_forms, print_json
from fedfactory.contracts.codec import encode
from fedfactory.contracts.errors import FedfactoryError, IntegrityError, ProtocolError
from fedfactory.lease import Holder, holder_of
from site_agents import control
from site_agents.approvals import Approvals
from site_agents.cli.home import add_home, find_home
from site_agents.config import load_agent_config
from site_agents.control import ControlState
from site_agents.failures import broken_failures, read_failures
from site_agents.ledger import Ledger
from site_agents.revocations import Kept, kept_revocations
from site_agents.status import Status, read_status
from site_agents.unbounded import unbounded as unbounded_of

LONGEST_NAME: Final = 80


def main(words: Sequence[str]) -> int:
    """Print the status; return the exit code, 0 whether the agent runs or not."""
    parser = Arguments(prog="site-agent status", description=__doc__)
    add_home(parser)
    add_forms(parser)
    asked = parser.parse_args(words)
    home = find_home(asked.home)
    holder, status, word = holder_of(home, "agent"), read_status(home), control.state(home)
    waiting, failures = len(Approvals(home).waiting()), failure_lines(home)
    unbounded = unbounded_lineages(home)
    kept, fault = _kept(home)
    if asked.json:
        whole = {
            "agent": asdict(holder) if holder else None,
            "control": asdict(word),
            "waiting_for_approval": waiting,
            "failures": failures,
            "unbounded_lineages": unbounded,
            "revoked_operators": [_revoked(one) for one in kept],
            "last_known": encode(status) if status else None,
        }
        print_json(whole)
    elif asked.quiet:
        for order in status.in_hand if holder and status else ():
            print(_name(order.run_id))
    else:
        lines = status_lines(holder, status, word, waiting, time.time())
        lines += [f"failures    {line}" for line in failures]
        lines += [f"privacy     lineage '{name}': {said}" for name, said in unbounded.items()]
        lines += [f"revoked     operator {one.told}" for one in kept]
        print("\n".join([*lines, f"revoked     {fault}"] if fault else lines))
    return 0


def unbounded_lineages(home: Path) -> dict[str, str]:
    """Return what to say of each lineage whose updates left without privacy."""
    try:
        ledger = Ledger.open(load_agent_config(home, []).ledger)
    except FedfactoryError as error:
        return {"?": f"not known: {error}"}
    try:
        return unbounded_of(ledger.budget)
    finally:
        ledger.close()


def failure_lines(home: Path) -> tuple[str, ...]:
    """Return what private work failed since the last resume, a line each."""
    try:
        return read_failures(home).lines()
    except (OSError, ProtocolError):
        return (broken_failures(home),)


def status_lines(
    holder: Holder | None, status: Status | None, word: ControlState, waiting: int, now: float
) -> list[str]:
    """Return the lines for a person; `waiting` counts results, `now` is Unix seconds. Pure."""
    if holder is None:
        lines = ["agent       not running (site-agent run)"]
    else:
        since = _ago(holder.since, now)
        lines = [f"agent       {holder.mode}, process {holder.pid} on {holder.host}, for {since}"]
    if holder is not None and status is not None:
        since = _ago(status.connection_since, now)
        lines.append(f"connection  {status.connection} for {since}  {status.detail}".rstrip())
        if status.connection != "connected" and status.connected_at is not None:
            lines.append(f"            last connected {_ago(status.connected_at, now)} ago")
    if status is not None and status.certificate_ends is not None:
        lines.append(f"certificate {_end(status.certificate_ends, now)}")
    if word.name != "running":
        reason = f": {word.reason}" if word.reason else ""
        said = f"{word.name} by {word.by}, {_ago(word.at, now)} ago{reason}"
        lines.append(f"control     {said}; site-agent resume takes it back")
    if waiting:
        lines.append(f"approvals   {waiting} wait for a person: site-agent approvals")
    if status is None:
        return [*lines, "orders      none yet"]
    for order in status.in_hand if holder else ():
        what = "waits for approval" if order.waits_for_approval else "in hand"
        lines.append(
            f"{what:<11} {_name(order.run_id)} round {order.round} {order.kind},"
            f" for {_ago(order.since, now)}"
        )
    for done in status.done:
        lines.append(
            f"done        {_name(done.run_id)} round {done.round} {done.kind}: {done.outcome},"
            f" {_ago(done.at, now)} ago"
        )
    return lines


def _kept(home: Path) -> tuple[tuple[Kept, ...], str]:
    """Return the operators who were revoked, or why that is not known."""
    try:
        return kept_revocations(home), ""
    except IntegrityError as error:
        return (), error.public_message


def _revoked(one: Kept) -> dict[str, Any]:
    told = one.signed.revocation
    return {
        "operator": one.operator,
        "key": told.key,
        "by": one.by,
        "at": one.kept_at,
        "reason": told.reason,
    }


def _name(run_id: str) -> str:
    """Show what a message calls its run; nothing in it may steer the terminal."""
    cut = run_id if len(run_id) <= LONGEST_NAME else f"{run_id[:LONGEST_NAME]}..."
    return "".join(letter if letter.isprintable() else "?" for letter in cut)


def _end(at: float, now: float) -> str:
    if at <= now:
        return f"ended {_ago(at, now)} ago: ask the consortium for an invitation, site-agent enrol"
    return f"holds for {_ago(now, at)} more, and is renewed by itself"


def _ago(then: float, now: float) -> str:
    seconds = max(0, int(now - then))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
