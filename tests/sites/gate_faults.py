"""One fault for each gate of GATES: what is wrong with an order, or with the site that gets it.

A fault changes the policy, the run's terms or the order, or something at the site. Two of them can
be there at once: of a value that both change, the earlier gate's counts.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.plans import Signature
from fedfactory.identity.signing import Signer, fingerprint, new_signing_key
from fedfactory.wire.arrays import write_arrays
from site_agents import control
from site_agents.approvals import Approvals
from site_agents.executors.executor import JobTimeoutError, NoDataError, UnfitWorkError
from site_agents.failures import MOST_FAILURES, note_failure
from site_agents.gates import BASE, BUDGET, GATES, NEW_WORK, RELEASE
from site_agents.policy import DataRule, Hours, OneOf, TaskRule
from site_agents.revocations import REVOKED_FILE
from tests.sites.asking import about_plan, questions_of
from tests.sites.rig import (
    HUB,
    INITIAL,
    LINEAGE,
    MODEL,
    OPEN,
    PRIVACY,
    PUBLIC_SIZE,
    TRAINING,
    Coordinator,
    Site,
)

Mode = Literal["private", "open"]
MODES: tuple[Mode, ...] = ("private", "open")
STRANGER = Signer(new_signing_key())
OTHER_BASE = BlobRef(digest="sha256:" + "e" * 64, bytes=INITIAL.bytes)
LARGE_BASE = BlobRef(digest="sha256:" + "0" * 64, bytes=50_000)
TABLE = {
    "kind": "classification", "label": "ill:0|1", "numeric": "age:50:20", "categorical": "",
    "model": "linear", "hidden": 8,
}  # fmt: skip


class Forger(Signer):
    """Has the right key, and signs something else."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.public_key = signer.public_key

    def sign(self, value: Any) -> Signature:
        return self._signer.sign({"another": "value"})


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`before` runs while all is well; `then` when policy, terms and order are as they are to be.

    `terms` and `order` may depend on the mode, `policy` on the site. `question` is the gate that a
    question before a run meets of it: its own, unless it needs more than the plan (None: no gate).
    """

    modes: tuple[Mode, ...] = MODES
    policy: Callable[[Site], dict[str, Any]] = lambda site: {}
    terms: Callable[[Mode], dict[str, Any]] = lambda mode: {}
    order: Callable[[Mode], dict[str, Any]] = lambda mode: {}
    key: Signer | None = None
    operator: Callable[[Coordinator], Signer] | None = None
    spoiled: bool = False
    before: Callable[[Asking], None] = lambda asking: None
    then: Callable[[Site], None] = lambda site: None
    question: str | None = ""


def policy(**changes: Any) -> Fault:
    return Fault(policy=lambda site: changes)


def terms(**changes: Any) -> Fault:
    return Fault(terms=lambda mode: changes)


def order(**changes: Any) -> Fault:
    return Fault(order=lambda mode: changes, question=None)


def privately(fault: Fault) -> Fault:
    return dataclasses.replace(fault, modes=("private",))


def openly(fault: Fault) -> Fault:
    return dataclasses.replace(fault, modes=("open",))


def privacy(**changes: Any) -> Fault:
    return privately(terms(privacy=dataclasses.replace(PRIVACY, **changes)))


@dataclass
class Asking:
    """A site with some faults, and what is asked of it in one mode."""

    site: Site
    mode: Mode
    faults: Sequence[Fault] = ()
    finished: list[str] = field(default_factory=list)

    def policy(self, faults: Sequence[Fault]) -> dict[str, Any]:
        found: dict[str, Any] = {"without_dp": OPEN if self.mode == "open" else None}
        for fault in reversed(faults):
            found |= fault.policy(self.site)
        return found

    def terms(self, faults: Sequence[Fault]) -> Any:
        found: dict[str, Any] = {"privacy": PRIVACY if self.mode == "private" else None}
        for fault in reversed(faults):
            found |= fault.terms(self.mode)
        return self.site.coordinator.terms(**found)

    def delivery(self, faults: Sequence[Fault]) -> str:
        changes: dict[str, Any] = {}
        for fault in reversed(faults):
            changes |= fault.order(self.mode)
        hub, signers = (
            self.site.coordinator,
            (self.site.coordinator.key, self.site.coordinator.operator),
        )
        try:
            for fault in reversed(faults):
                hub.key = fault.key or hub.key
                hub.operator = fault.operator(hub) if fault.operator else hub.operator
            text = self.site.delivery(self.terms(faults), **changes)
        finally:
            hub.key, hub.operator = signers
        return spoiled(text) if any(fault.spoiled for fault in faults) else text

    def well(self, **changes: Any) -> Any:
        """Ask for work while nothing is wrong."""
        return self.site.ask(self.terms(()), **changes)


def spoiled(text: str) -> str:
    raw = json.loads(text)
    raw["signature"]["value"] = "AAAA"
    return json.dumps(raw)


def _all_hubs(site: Site) -> dict[str, Any]:
    key = fingerprint(site.coordinator.key.public_key)
    return {"coordinators": {HUB: key, "other": key}}


def _closed(site: Site) -> dict[str, Any]:
    now = time.gmtime()
    minute = 60 * now.tm_hour + now.tm_min
    start, end = (minute + 120) % 1440, (minute + 180) % 1440 or 1440
    return {"hours": Hours(start=start, end=end, time_zone="UTC")}


def _other_source(site: Site) -> dict[str, Any]:
    rule = DataRule(lineage=LINEAGE, public_size=PUBLIC_SIZE, unit="row")
    return {"data": {"cohort": rule, "other": rule}, "tasks": {"digits": "other"}}


def _use_hours(asking: Asking) -> None:
    assert asking.well(round=1).update is not None


def _begin(asking: Asking) -> None:
    """Begin round 4, and let it fail once."""

    def late(job: object) -> None:
        raise JobTimeoutError("slow")

    asking.site.executor.fault = late
    assert asking.well(round=4).refusal is not None
    asking.site.executor.fault = lambda job: None


def _send_receipt(asking: Asking) -> None:
    assert asking.well(round=1).update is not None
    assert asking.well(round=2, receipt=asking.site.books.anchor()).update is not None


def _finish(asking: Asking) -> None:
    asking.site.answer(asking.delivery(()))
    assert asking.site.books.finished(
        asking.site.coordinator.order(asking.site.base, asking.terms(())).key()
    )


def _be_asked(asking: Asking) -> None:
    """Have a line in the audit chain."""
    assert questions_of(asking.site).answer(about_plan(asking.site)) is not None


def _deny(asking: Asking) -> None:
    asking.site.write_policy(**{**asking.policy(()), "egress": "every_round"})
    asking.site.answer(asking.delivery(()))
    approvals = Approvals(asking.site.home)
    (one,) = approvals.waiting()
    approvals.decide(one, approved=False, by="mia", reason="too exact")


def _append(name: str, text: str) -> Callable[[Site], None]:
    def then(site: Site) -> None:
        with (site.home / name).open("a") as file:
            file.write(text)

    return then


def _say(word: Any) -> Callable[[Site], None]:
    return lambda site: control.set(site.home, word, by="admin", reason="a test")


def cut_chain(site: Site) -> None:
    """Cut the last line of the audit chain off."""
    chain = site.home / "audit" / "chain.jsonl"
    lines = chain.read_bytes().splitlines(keepends=True)
    assert lines, "there is something to cut"
    chain.write_bytes(b"".join(lines[:-1]))


def _fail(site: Site) -> None:
    for _ in range(MOST_FAILURES):
        note_failure(site.home, LINEAGE, HUB)


def _no_form(site: Site) -> None:
    site.executor.misfit = NoDataError("no such file")
    site.executor.describe = _raising(NoDataError("no such file"))  # type: ignore[method-assign]


def _raising(error: Exception) -> Callable[..., Any]:
    def call(*arguments: object) -> Any:
        raise error

    return call


def _few(site: Site) -> None:
    site.executor.facts = dataclasses.replace(site.executor.facts, train=9)


def _no_transfer(site: Site) -> None:
    site.pipeline._working._fetch = _raising(OSError("the line was cut"))


def _large_values(site: Site) -> None:
    held = dict(MODEL, b=np.full(3, 2.0, np.float32))
    write_arrays(site.folder / "base.safetensors", held)


def _unfit(site: Site) -> None:
    site.executor.unfit = UnfitWorkError("bad_model", "another form")


def _revoke_meanwhile(site: Site) -> None:
    """The list is damaged while the work is done: who was revoked is then not known."""
    site.executor.fault = lambda job: _append(REVOKED_FILE, "{")(site)


def _other_file(site: Site) -> None:
    (file,) = (site.home / "spool" / "jobs").glob("*/update.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"!")


FAULTS: dict[str, Fault] = {
    "coordinator's signature": Fault(spoiled=True),
    "operator's signature": Fault(operator=lambda hub: Forger(hub.operator)),
    "list of revoked operators": Fault(then=_append(REVOKED_FILE, "{")),
    "policy file": Fault(then=_append("policy.yaml", "extra: 1\n")),
    "known coordinator": Fault(key=STRANGER),
    "known operator": Fault(operator=lambda hub: STRANGER),
    "safe names": terms(run_id="a..b"),
    "time to answer": order(expires_at=1000.0),
    "same plan": order(terms_digest="sha256:" + "1" * 64),
    "end of the plan": terms(not_after=1.0),
    "same coordinator": Fault(
        policy=_all_hubs, order=lambda mode: {"coordinator": "other"}, question=None
    ),
    "same run": order(run_id="run-9"),
    "this site": terms(sites=("lumi",)),
    "planned round": order(round=6),
    "planned evaluation": Fault(
        terms=lambda mode: {"evaluate": False},
        order=lambda mode: {"kind": "evaluate"},
        question=None,
    ),
    "planned task": order(task="echo"),
    "planned task parameters": order(task_parameters={"model": "cnn"}),
    "planned training": order(training=dataclasses.replace(TRAINING, local_epochs=3)),
    "planned privacy": Fault(
        order=lambda mode: {
            "privacy": PRIVACY if mode == "open" else dataclasses.replace(PRIVACY, clip_norm_l2=9.0)
        },
        question=None,
    ),
    "planned model size": Fault(
        terms=lambda mode: {"initial": LARGE_BASE}, order=lambda mode: {"base": LARGE_BASE}
    ),
    "signed first model": order(base=OTHER_BASE),
    "allowed task": terms(task="tabular", task_parameters={}),
    "allowed task parameters": policy(
        tasks={"digits": TaskRule(source="cohort", parameters={"model": OneOf(("cnn",))})}
    ),
    "allowed training": terms(training=dataclasses.replace(TRAINING, local_epochs=6)),
    "allowed strategy": policy(strategies=("fedprox",)),
    "differential privacy": openly(policy(without_dp=None)),
    "delta": privacy(delta=1e-3),
    "epsilon of the run": privacy(target_epsilon=3.5),
    "number of evaluations": policy(max_evaluations=1),
    "number of rounds": policy(rounds=4),
    "length of the plan": Fault(terms=lambda mode: {"not_after": time.time() + 40 * 86400}),
    "model size": policy(max_model_bytes=10),
    "hour of the day": Fault(policy=_closed),
    "GPU-hours": Fault(
        before=_use_hours,
        policy=lambda site: {"gpu_hours_per_run": 0.0004},
        order=lambda mode: {"round": 2},
    ),
    "ledger and audit chain": Fault(before=_be_asked, then=cut_chain),
    "one order for a round": Fault(
        before=_begin, order=lambda mode: {"round": 4, "seed": 2}, question=None
    ),
    "receipt": Fault(before=_send_receipt, order=lambda mode: {"round": 3}),
    "kill switch": Fault(then=_say("killed")),
    "pause": Fault(then=_say("paused")),
    "task's own schema": terms(task_parameters={"model": "gpt"}),
    "data source": Fault(policy=_other_source),
    "private training": privately(terms(task_parameters={"model": "cnn_bn"})),
    "fixed data parameters": privately(
        Fault(
            terms=lambda mode: {"task": "tabular", "task_parameters": TABLE},
            policy=lambda site: {"tasks": {"tabular": "cohort"}},
        )
    ),
    "failed work": privately(Fault(then=_fail)),
    "form of the data": Fault(then=_no_form),
    "number of records": openly(Fault(then=_few)),
    "number of local steps": openly(
        policy(without_dp=dataclasses.replace(OPEN, min_local_steps=1000))
    ),
    "whole base model": Fault(then=_no_transfer, question=None),
    "numbers of the base model": Fault(
        then=_large_values, policy=lambda site: {"max_base_abs": {"b": 1.0}}, question=None
    ),
    "trial without data": privately(Fault(then=_unfit, question=None)),
    "privacy budget": privacy(target_epsilon=None, noise_multiplier=0.01),
    "kill switch, again": Fault(before=_finish, then=_say("killed"), question="kill switch"),
    "operator, again": Fault(then=_revoke_meanwhile, question=None),
    "a person's decision": Fault(
        before=_deny, policy=lambda site: {"egress": "every_round"}, question=None
    ),
    "cleared file": Fault(before=_finish, then=_other_file, question=None),
}
PLACE = {gate.name: place for place, gate in enumerate(GATES)}


def can_be_together(first: str, second: str) -> bool:
    """Whether two faults can be there at once: some use the same file, value or state of the work."""
    if {first, second} in ({"kill switch", "pause"}, {"private training", "fixed data parameters"}):
        return False
    parts = {gate.part for gate in GATES if gate.name in (first, second)}
    return not (RELEASE in parts and parts & {NEW_WORK, BASE, BUDGET})
