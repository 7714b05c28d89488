"""The site's own steps: policy clauses, egress guard, work ledger, audit chain."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fedfactory.contracts.errors import IntegrityError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import Order, TrainParameters
from fedfactory.contracts.updates import Refusal, Reply
from fedfactory.wire.arrays import spec_of, write_arrays
from site_agents.audit import AuditChain, verify
from site_agents.egress import HeldBack, check_metrics, check_update
from site_agents.ledger import WorkConflictError, WorkLedger
from site_agents.policy import CLAUSES, Policy, judge

TRAINING = TrainParameters(
    local_epochs=2, batch_size=8, lr=0.1, momentum=0.0, proximal_mu=0.0, max_steps=None
)
ORDER = Order(
    coordinator="hub", run_id="r", round=1, kind="train", site="a", task="digits",
    task_parameters={"model": "mlp"}, training=TRAINING,
    base=BlobRef(digest="sha256:" + "0" * 64, bytes=100), seed=1, privacy="none",
)  # fmt: skip
POLICY = Policy(
    tasks=("digits",), privacy=("none",), metrics=("loss",), max_rounds=5, max_local_epochs=3,
    max_model_bytes=1000, min_examples=10,
)  # fmt: skip
BROKEN = {
    "tasks": ({"task": "other"}, "policy_task"),
    "privacy": ({"privacy": "dp_sgd"}, "policy_privacy"),
    "max_rounds": ({"round": 6}, "policy_parameters"),
    "max_local_epochs": (
        {"training": dataclasses.replace(TRAINING, local_epochs=4)},
        "policy_parameters",
    ),
    "max_model_bytes": (
        {"base": BlobRef(digest=ORDER.base.digest, bytes=1001)},
        "policy_parameters",
    ),
}


def test_an_order_within_every_clause_is_allowed() -> None:
    assert judge(POLICY, ORDER, examples=10).code is None
    assert judge(POLICY, ORDER, examples=None).code is None


@pytest.mark.parametrize("clause", BROKEN)
def test_the_broken_clause_decides(clause: str) -> None:
    change, code = BROKEN[clause]
    verdict = judge(POLICY, dataclasses.replace(ORDER, **change), examples=10)
    assert (verdict.code, verdict.clause) == (code, clause)


def test_too_few_examples() -> None:
    assert judge(POLICY, ORDER, examples=9).code == "too_few_examples"
    assert set(CLAUSES) == {*BROKEN, "min_examples"}


def _model() -> dict[str, np.ndarray]:
    return {"w": np.ones((2, 3), np.float32), "n": np.array(3, np.int64)}


def _guard(path: Path, tensors: dict[str, np.ndarray]) -> HeldBack | None:
    return check_update(path, spec_of(_model()), write_arrays(path, tensors))


def test_a_declared_update_passes(tmp_path: Path) -> None:
    assert _guard(tmp_path / "u", {"w": np.zeros((2, 3), np.float32)}) is None


@pytest.mark.parametrize(
    "tensors",
    [
        {"v": np.zeros((2, 3), np.float32)},
        {"w": np.zeros((3, 2), np.float32)},
        {"w": np.zeros((2, 3), np.float64)},
        {"w": np.zeros((2, 3), np.float32), "n": np.array(3, np.int64)},
        {"w": np.full((2, 3), np.nan, np.float32)},
        {"w": np.full((2, 3), np.inf, np.float32)},
        {},
    ],
)
def test_anything_else_is_held_back(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    assert isinstance(_guard(tmp_path / "u", tensors), HeldBack)


def test_a_file_of_another_length_is_held_back(tmp_path: Path) -> None:
    path = tmp_path / "u"
    ref = write_arrays(path, {"w": np.zeros((2, 3), np.float32)})
    path.write_bytes(path.read_bytes()[:-1])
    assert isinstance(check_update(path, spec_of(_model()), ref), HeldBack)


def test_only_allowed_finite_metrics_leave() -> None:
    assert check_metrics({"loss": 1.0, "secret": 2.0}, ("loss",)) == {"loss": 1.0}
    assert isinstance(check_metrics({"loss": float("nan")}, ("loss",)), HeldBack)


def test_finished_work_is_answered_again_also_after_a_restart(tmp_path: Path) -> None:
    key = ORDER.key()
    reply = Reply(update=None, refusal=Refusal(work=key, code="work_failed"))
    ledger = WorkLedger(tmp_path / "ledger.sqlite")
    assert ledger.finished(key) is None
    ledger.reserve(key)
    assert ledger.finished(key) is None
    ledger.commit(key, reply)
    ledger.close()
    again = WorkLedger(tmp_path / "ledger.sqlite")
    assert again.finished(key) == reply
    again.close()


def test_another_order_for_begun_work_is_a_conflict(tmp_path: Path) -> None:
    ledger = WorkLedger(tmp_path / "ledger.sqlite")
    ledger.reserve(ORDER.key())
    other = dataclasses.replace(ORDER, seed=2).key()
    with pytest.raises(WorkConflictError):
        ledger.finished(other)
    ledger.close()


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    audit = AuditChain(path)
    for number in range(4):
        audit.append({"round": number})
    audit.close()
    return path


def test_a_chain_goes_on_where_it_ended(chain: Path) -> None:
    audit = AuditChain(chain)
    head = audit.append({"round": 4})
    audit.close()
    assert verify(chain.read_text().splitlines()) == head


@pytest.mark.parametrize("line", [0, 1, 2])
def test_an_edit_is_found(chain: Path, line: int) -> None:
    lines = chain.read_text().splitlines()
    lines[line] = lines[line].replace('"round": ', '"round": 9')
    with pytest.raises(IntegrityError, match=f"line {line + 2}"):
        verify(lines)


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_deletion_or_swap_is_found(chain: Path, line: int) -> None:
    lines = chain.read_text().splitlines()
    with pytest.raises(IntegrityError):
        verify(lines[:line] + lines[line + 1 :])
    lines[line], lines[line + 1] = lines[line + 1], lines[line]
    with pytest.raises(IntegrityError):
        verify(lines)


def test_an_agent_does_not_open_a_broken_chain(chain: Path) -> None:
    chain.write_text(chain.read_text().replace('"round": 1', '"round": 7'))
    with pytest.raises(IntegrityError):
        AuditChain(chain)
