"""The event log's lines: one JSON object each, numbered, strict both ways.

The first event, RunStarted, says beside its fields which form all of them have (form_stamp).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, get_args

from fedfactory.contracts.codec import decode, to_json
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.versions import check_form, form_stamp
from fedfactory.rounds.events import Event, RunStarted

EVENT_TYPES: Final[dict[str, Any]] = {kind.__name__: kind for kind in get_args(Event)}


def encode_event(seq: int, event: Event) -> str:
    """Return the line of one event, without its newline."""
    body = json.loads(to_json(event))
    stamp = form_stamp() if isinstance(event, RunStarted) else {}
    return json.dumps({"seq": seq, "event": type(event).__name__, **stamp, **body}, allow_nan=False)


def decode_event(line: str) -> tuple[int, Event]:
    """Return number and event of a line.

    Raises:
        ProtocolError: not a line of the log.
        OtherFormError: the log of a run that another version began.
    """
    try:
        raw = json.loads(line)
        seq, kind = raw.pop("seq"), EVENT_TYPES[raw.pop("event")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError("not an event", diagnostic=str(error)) from error
    if kind is RunStarted:
        check_form(_run_id(raw), raw)
        raw = {name: value for name, value in raw.items() if name not in form_stamp()}
    if type(seq) is not int:
        raise ProtocolError(f"seq: expected an integer, found {type(seq).__name__}")
    event: Event = decode(kind, raw)
    return seq, event


def _run_id(raw: dict[str, Any]) -> str:
    """Return the run's id as any form's RunStarted names it."""
    plan = raw.get("plan")
    terms = plan.get("signed", {}).get("terms", plan) if isinstance(plan, dict) else {}
    return str(terms.get("run_id", "?"))[:64]


def read_log(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events of a log. A last line without newline was cut short and is left out.

    Raises:
        ProtocolError: a malformed line, or one out of order; names the line.
    """
    for expected, line in enumerate(lines):
        if not line.endswith("\n"):
            return
        try:
            seq, event = decode_event(line)
        except ProtocolError as error:
            raise ProtocolError(f"line {expected + 1}: {error.public_message}") from error
        if seq != expected:
            raise ProtocolError(f"line {expected + 1}: expected event {expected}, found {seq}")
        yield event
