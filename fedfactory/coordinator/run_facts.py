"""What a run's submission says to those who list it, also that of a run of another form.

A run that an older version began is listed, and its models are kept; it is never gone on with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedfactory.contracts.bounds import Count, Ordinal, UnixTime
from fedfactory.contracts.codec import decode, encode, json_object
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.plans import Mode
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.contracts.versions import OtherFormError, check_form, form_stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A run as it was submitted: by whom, when (Unix seconds), and its place in the order."""

    number: Count
    at: UnixTime
    operator: str
    plan: RunPlan

    def to_json(self) -> str:
        """Return the text of submission.json."""
        return json.dumps({**encode(self), **form_stamp()}, sort_keys=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What of a submission is needed to list a run, and to know its plan and model again."""

    number: Count
    at: UnixTime
    operator: str
    run_id: str
    nonce: str
    task: str
    strategy: str
    mode: Mode
    rounds: Ordinal
    sites: tuple[str, ...]
    initial: BlobRef


def read_submission(text: bytes) -> tuple[RunFacts, Taken | OtherFormError]:
    """Read submission.json: its facts, and the submission, or why this version does not run it.

    Raises:
        ProtocolError: it is no submission of any form.
    """
    raw = json_object(text)
    try:
        plan = raw["plan"] if "plan" in raw else raw["submission"]  # form 1 had both in one
        terms = plan["signed"]["terms"]
        names = ("run_id", "nonce", "task", "strategy", "mode", "rounds", "sites", "initial")
        facts = {name: terms[name] for name in names}
        facts |= {name: raw[name] for name in ("number", "at", "operator")}
    except (KeyError, TypeError) as error:
        raise ProtocolError("not a submission", diagnostic=str(error)) from error
    found = decode(RunFacts, facts)
    return found, _taken(found.run_id, raw)


def _taken(run_id: str, raw: Mapping[str, Any]) -> Taken | OtherFormError:
    try:
        check_form(run_id, raw)
    except OtherFormError as error:
        return error
    return decode(Taken, {name: raw[name] for name in raw.keys() - form_stamp().keys()})
