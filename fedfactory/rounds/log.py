"""The event log's lines: one JSON object each, numbered, strict both ways."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, get_args

from fedfactory.contracts.codec import decode, to_json
from fedfactory.contracts.errors import ProtocolError
from fedfactory.rounds.events import Event

EVENT_TYPES: Final[dict[str, Any]] = {kind.__name__: kind for kind in get_args(Event)}


def encode_event(seq: int, event: Event) -> str:
    """Return the line of one event, without its newline."""
    body = json.loads(to_json(event))
    return json.dumps({"seq": seq, "event": type(event).__name__, **body}, allow_nan=False)


def decode_event(line: str) -> tuple[int, Event]:
    """Return number and event of a line.

    Raises:
        ProtocolError: not a line of the log.
    """
    try:
        raw = json.loads(line)
        seq, kind = raw.pop("seq"), EVENT_TYPES[raw.pop("event")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError("not an event", diagnostic=str(error)) from error
    if type(seq) is not int:
        raise ProtocolError(f"seq: expected an integer, found {type(seq).__name__}")
    event: Event = decode(kind, raw)
    return seq, event


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
