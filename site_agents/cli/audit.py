"""`site-agent audit`: check, show or export the record of what left the site."""

from __future__ import annotations

from argparse import Namespace
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedfactory.cli.arguments import Arguments, count
from fedfactory.cli.forms import add_forms, tell
from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import IntegrityError, UsageError
from fedfactory.contracts.plans import Anchor
from site_agents.audit.chain import now
from site_agents.audit.export import Scope, check_export, write_export
from site_agents.audit.line import Line
from site_agents.audit.reading import Found, read, verify
from site_agents.audit.statements import PUBLIC_KEY
from site_agents.cli.home import add_home, find_home
from site_agents.cli.recording import record
from site_agents.config import load_agent_config
from site_agents.person import person
from site_agents.second_place import SYSLOG, SecondPlace

FOLDER: Final = "audit"
SHOWN: Final = 20


def main(words: Sequence[str]) -> int:
    """Run `audit verify`, `audit show` or `audit export`; return 0."""
    asked = _arguments().parse_args(words)
    home = find_home(asked.home)
    if asked.action == "verify":
        _verify(home, asked)
    elif asked.action == "show":
        _show(home / FOLDER, asked)
    else:
        scope = Scope(
            since=_time(asked.since), run=asked.run, withhold=frozenset(asked.withhold or ())
        )
        _export(home, asked, scope)
    return 0


def _arguments() -> Arguments:
    parser = Arguments(
        prog="site-agent audit", description="The record of what left the site, and who decided."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "verify", help="find any edit, deletion, reordering or truncation, and say where"
    )
    show = actions.add_parser("show", help="print the newest entries")
    show.add_argument("--last", type=count, default=SHOWN, metavar="N", help=f"how many ({SHOWN})")
    export = actions.add_parser(
        "export",
        help="write a signed file that docs/verify_audit.py checks; the export is recorded",
    )
    export.add_argument("file", type=Path, metavar="FILE", help="a new file (JSON Lines)")
    export.add_argument("--since", metavar="TIME", help="from the first entry on that is not older")
    export.add_argument(
        "--withhold", action="append", metavar="FIELD", help="hide a field; can be given again"
    )
    for action in (show, export):
        action.add_argument("--run", metavar="RUN", help="entries of this run only")
    for action in (check, show, export):
        add_home(action)
        add_forms(action)
    return parser


def _time(word: str | None) -> str:
    """Return a time as lines carry it; one without a zone is UTC."""
    if word is None:
        return ""
    try:
        time = datetime.fromisoformat(word)
    except ValueError as error:
        raise UsageError(f"--since {word}: expected a time, as in 2026-11-21T07:30") from error
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def _verify(home: Path, asked: Namespace) -> None:
    second = load_agent_config(home, []).second_place
    # Read first: whatever is anchored by now, the chain already holds when it is read.
    anchor = SecondPlace(second).last()
    found = verify(home / FOLDER)
    beside = _second_place(second, anchor, found)
    words = [f"holds: {found.trail.length} entries, head {found.trail.head}"]
    if found.notice:
        words.append(
            f"note: {found.notice}; the agent sets it right, and records it, when it next writes"
        )
    tell(
        asked,
        {
            "entries": found.trail.length,
            "head": found.trail.head,
            "notice": found.notice,
            "second_place": beside,
        },
        ids=[found.trail.head],
        words=[*words, beside],
    )


def _second_place(path: Path | None, anchor: Anchor | None, found: Found) -> str:
    if path is None:
        return "no second place: an older copy of the whole home, put back, cannot be told apart"
    if path == SYSLOG:
        return "second place: the system's log; compare its last 'fedfactory: anchor' yourself"
    if anchor is None:
        return f"second place: {path} holds no anchor yet"
    if (head := found.trail.head_at(anchor.audit_length)) != anchor.audit_head:
        end = "the chain is shorter" if head is None else "the chain was rewritten"
        raise IntegrityError(
            f"the second place {path} saw {anchor.audit_length} entries with head"
            f" {anchor.audit_head}; {end}: an older copy was restored, or another chain put here"
        )
    return f"second place: agrees, up to entry {anchor.audit_length}"


def _show(folder: Path, asked: Namespace) -> None:
    newest: deque[Line] = deque(maxlen=asked.last)

    def keep(line: Line) -> None:
        if asked.run is None or line.fields().get("run") == asked.run:
            newest.append(line)

    read(folder, keep)
    entries = [{"index": line.index, "at": line.at, **line.fields()} for line in newest]
    tell(
        asked,
        {"entries": entries},
        ids=[line.index for line in newest],
        words=[_told(line) for line in newest] or ["no entries"],
    )


def _told(line: Line) -> str:
    """Return an entry as one line; values as JSON, so that none can steer a terminal."""
    entry = line.fields()
    event, actor = entry.pop("event", ""), entry.pop("actor", "")
    rest = " ".join(f"{name}={to_json(value)}" for name, value in entry.items())
    return f"{line.index} {line.at} {event} by {to_json(actor)} {rest}".rstrip()


def _export(home: Path, asked: Namespace, scope: Scope) -> None:
    file: Path = asked.file
    check_export(home / FOLDER, file, scope)
    # Recorded first: the file then ends with the record of itself.
    record(
        home,
        "exported",
        actor=person(),
        since=scope.since,
        run=scope.run,
        withheld=sorted(scope.withhold),
    )
    lines = write_export(home / FOLDER, file, scope, now())
    key = home / FOLDER / PUBLIC_KEY
    tell(
        asked,
        {"entries": lines, "file": str(file), "public_key": str(key)},
        ids=[file],
        words=[
            f"{lines} entries in {file}",
            f"to check them: python verify_audit.py {file} {key}",
        ],
    )
