"""A person decides on exactly what they looked at; what does not hold approves nothing."""

from __future__ import annotations

import json
import stat
import time
from dataclasses import replace

import pytest

from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.model import BlobRef, TensorSpec
from fedfactory.contracts.privacy import PrivacySpent
from fedfactory.contracts.updates import Payload, Update
from site_agents.approvals import DECISION, REQUEST, Approvals, work_id
from site_agents.audit import AuditChain
from site_agents.cli.main import main
from site_agents.comparison import compare, tensor_lines
from site_agents.leaving import Leaving, leaving
from tests.policy_orders import TERMS, sending_of

TENSORS = (
    TensorSpec(name="a.bias", shape=(10,), dtype="F32"),
    TensorSpec(name="a.weight", shape=(10, 64), dtype="F32"),
)
SPENT = PrivacySpent(
    epsilon_run=1.25,
    delta=1e-5,
    noise_multiplier=1.1,
    sample_rate=0.04,
    steps=50,
    unit="unit",
    accountant="rdp",
)
LATER = replace(TERMS, not_after=time.time() + 3600)


def update_of(sending, digit: str = "1", loss: float = 0.5) -> Update:
    train = sending.order.kind == "train"
    blob = BlobRef(digest="sha256:" + digit * 64, bytes=2800)
    return Update(
        work=sending.order.key(),
        payload=Payload(form="delta", blob=blob) if train else None,
        examples=1000,
        metrics={"loss": loss},
        seconds=1.0,
        privacy=SPENT,
    )


def shown_of(sending, update: Update, **changes) -> Leaving:
    train = sending.order.kind == "train"
    made = leaving(
        sending,
        update,
        declared=TENSORS if train else (),
        tensors=TENSORS if train else (),
        norm_l2=3.5 if train else None,
        source="scans",
        lineage="patients",
        epsilon_charged=0.3,
    )
    return replace(made, **changes)


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "agent.yaml").write_text("site: here\n")
    AuditChain.create(tmp_path / "audit")
    monkeypatch.setenv("FEDFACTORY_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def asked(home):
    """One update that waits: (approvals, its work id, what is shown of it)."""
    sending = sending_of(LATER)
    shown = shown_of(sending, update_of(sending))
    approvals, name = Approvals(home), work_id(sending.order.key())
    approvals.request(name, shown)
    return approvals, name, shown


def test_nothing_waits_and_nothing_is_decided_in_a_new_home(home):
    approvals, name = Approvals(home), work_id(sending_of().order.key())
    assert approvals.waiting() == ()
    assert approvals.pending() == frozenset()
    assert approvals.decision(name, "sha256:" + "1" * 64) is None
    assert not approvals.approved_before("sha256:" + "1" * 64, "train")
    approvals.settle(name)


def test_a_decision_is_found_by_whoever_asks_later(home, asked):
    approvals, name, shown = asked
    (one,) = approvals.waiting()
    assert one.leaving == shown
    assert one.decision is None
    assert approvals.decision(name, shown.update) is None
    approvals.decide(one, approved=True, by="ada", reason="looks fine")
    found = Approvals(home).decision(name, shown.update)
    assert found is not None
    assert (found.approved, found.by, found.reason) == (True, "ada", "looks fine")
    assert abs(found.at - time.time()) < 60


@pytest.mark.parametrize("digit_and_loss", [("2", 0.5), ("1", 0.25)])
def test_another_update_under_the_same_work_is_not_approved(asked, digit_and_loss):
    """Other arrays, or the same arrays with another metric: another update."""
    approvals, name, shown = asked
    approvals.decide(approvals.waiting()[0], approved=True, by="ada", reason="")
    sending = sending_of(LATER)
    other = shown_of(sending, update_of(sending, *digit_and_loss))
    assert approvals.decision(name, other.update) is None
    approvals.request(name, other)
    assert approvals.decision(name, other.update) is None
    # What was approved never left, so it opens no door for the rest of the run either.
    assert not approvals.approved_before(shown.terms_digest, "train")
    assert [one.leaving for one in approvals.waiting()] == [other]
    with pytest.raises(UsageError, match="unknown id"):
        approvals.find(shown.id)


def test_asked_twice_it_waits_since_the_first_time(asked):
    approvals, name, shown = asked
    since = approvals.waiting()[0].since
    approvals.decide(approvals.waiting()[0], approved=True, by="ada", reason="")
    approvals.request(name, shown)
    assert approvals.waiting()[0].since == since
    assert approvals.decision(name, shown.update) is not None


def test_an_approval_counts_for_its_plan_and_kind_alone(asked):
    approvals, _, shown = asked
    assert not approvals.approved_before(shown.terms_digest, "train")
    approvals.decide(approvals.waiting()[0], approved=True, by="ada", reason="")
    assert approvals.approved_before(shown.terms_digest, "train")
    assert not approvals.approved_before(shown.terms_digest, "evaluate")
    assert not approvals.approved_before(digest_of(TERMS), "train")
    approvals.decide(approvals.waiting()[0], approved=False, by="bob", reason="no")
    assert not approvals.approved_before(shown.terms_digest, "train")


def test_what_left_waits_no_more_and_its_decision_stays(asked):
    approvals, name, shown = asked
    assert approvals.pending() == {name}
    approvals.decide(approvals.waiting()[0], approved=True, by="ada", reason="")
    assert approvals.pending() == {name}  # its files are still needed
    approvals.settle(name)
    assert approvals.pending() == frozenset()
    assert approvals.waiting() == ()
    assert approvals.decision(name, shown.update) is not None


def test_what_may_never_leave_any_more_is_not_kept(home):
    sending = sending_of(replace(TERMS, not_after=time.time() - 1))
    approvals = Approvals(home)
    approvals.request(work_id(sending.order.key()), shown_of(sending, update_of(sending)))
    assert approvals.pending() == frozenset()


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw.replace(b'"approved":true', b'"approved":1'),
        lambda raw: raw.replace(b'"approved":true', b'"approved":true,"also":1'),
        lambda raw: b"\xff" + raw,
    ],
)
def test_a_damaged_decision_approves_nothing(home, asked, damage, capsys):
    approvals, name, shown = asked
    approvals.decide(approvals.waiting()[0], approved=True, by="ada", reason="")
    (path,) = (home / "control" / "approvals").glob(f"*{DECISION}")
    path.write_bytes(damage(path.read_bytes()))
    assert approvals.decision(name, shown.update) is None
    assert not approvals.approved_before(shown.terms_digest, "train")
    assert approvals.damaged() == (path,)
    assert main(["approvals"]) == 0
    assert "does not hold" in capsys.readouterr().err


def test_a_decision_that_others_could_write_approves_nothing(home, asked):
    approvals, name, shown = asked
    (one,) = approvals.waiting()
    approvals.decide(one, approved=True, by="ana", reason="")
    assert approvals.decision(name, shown.update) is not None
    (path,) = (home / "control" / "approvals").glob("*.decision.json")
    path.chmod(0o620)
    assert approvals.decision(name, shown.update) is None
    assert approvals.damaged() == (path,)
    path.chmod(0o600)
    path.parent.chmod(0o770)
    assert approvals.decision(name, shown.update) is None


def test_a_damaged_request_cannot_be_approved_and_is_written_anew(home, asked, capsys):
    approvals, name, shown = asked
    (path,) = (home / "control" / "approvals").glob(f"*{REQUEST}")
    path.write_text(path.read_text()[:-5])
    assert main(["approve", shown.id]) == 2
    assert "nothing waits" in capsys.readouterr().err
    assert approvals.pending() == {name}  # what it is about may still be needed
    approvals.request(name, shown)
    assert approvals.find(shown.id).leaving == shown


def test_files_are_the_users_alone(home, asked):
    approvals, _, _ = asked
    approvals.decide(approvals.waiting()[0], approved=True, by="ada", reason="")
    files = list((home / "control" / "approvals").iterdir())
    assert len(files) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((home / "control" / "approvals").stat().st_mode) == 0o700


def test_files_that_are_no_work_are_left_alone(home, asked):
    approvals, name, _ = asked
    folder = home / "control" / "approvals"
    for stray in ("..request.json", "notes.request.json", ".x.request.json.part"):
        (folder / stray).write_text("{}")
    assert approvals.pending() == {name}
    assert approvals.damaged() == ()


# ---- against the plan --------------------------------------------------------------------------


def test_an_update_within_its_plan_has_no_line_outside():
    sending = sending_of(LATER)
    shown = shown_of(sending, update_of(sending))
    assert all(line.fits for line in (*compare(shown), *tensor_lines(shown)))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tensors": TENSORS[:1]}, {"tensors", "tensor 'a.weight'"}),
        (
            {"tensors": (*TENSORS, TensorSpec(name="b", shape=(), dtype="F64"))},
            {"tensors", "tensor 'b'"},
        ),
        (
            {"tensors": (replace(TENSORS[0], shape=(11,)), TENSORS[1])},
            {"tensors", "tensor 'a.bias'"},
        ),
        (
            {"tensors": (replace(TENSORS[0], dtype="F16"), TENSORS[1])},
            {"tensors", "tensor 'a.bias'"},
        ),
        ({"blob": BlobRef(digest="sha256:" + "1" * 64, bytes=500_001)}, {"bytes"}),
        ({"norm_l2": 4.1}, {"norm (L2)"}),
        ({"norm_l2": None}, {"norm (L2)"}),
        ({"privacy": replace(SPENT, epsilon_run=3.2)}, {"epsilon of the run"}),
        ({"privacy": None}, {"privacy"}),
        ({"round": 6}, {"round"}),
        ({"task": "echo"}, {"task"}),
    ],
)
def test_each_line_outside_the_plan_is_named(changes, what):
    sending = sending_of(LATER)
    shown = shown_of(sending, update_of(sending), **changes)
    outside = {line.what for line in (*compare(shown), *tensor_lines(shown)) if not line.fits}
    assert outside == what


# ---- the commands ------------------------------------------------------------------------------


def test_the_list_the_one_and_the_same_for_a_program(asked, capsys):
    _, name, shown = asked
    assert main(["approvals"]) == 0
    listed = capsys.readouterr().out
    assert shown.id in listed
    assert "1 of 5" in listed
    assert main(["approvals", shown.id]) == 0
    one = capsys.readouterr().out
    for said in (shown.update, shown.terms_digest, "a.weight", "10 x 64 f4", "at most 4", "3.5"):
        assert said in one
    assert "all of it is as planned" in one
    assert main(["approvals", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["id"], told["work_id"], told["as_planned"]) == (shown.id, name, True)
    assert told["leaving"]["blob"]["digest"] == "sha256:" + "1" * 64
    assert told["leaving"]["lineage"] == "patients"


def test_approve_binds_to_the_id_that_was_listed(home, asked, capsys):
    approvals, name, shown = asked
    sending = sending_of(LATER)
    other = shown_of(sending, update_of(sending, "2"))
    approvals.request(name, other)  # between the list and the answer
    assert main(["approve", shown.id]) == 2
    assert "unknown id" in capsys.readouterr().err
    assert approvals.decision(name, other.update) is None
    assert main(["approve", other.id]) == 0
    assert approvals.decision(name, other.update).approved


def test_deny_wants_a_reason_and_tells_nobody_outside(asked, capsys):
    approvals, name, shown = asked
    assert main(["deny", shown.id]) == 2
    assert main(["deny", shown.id, "--reason", "  "]) == 2
    assert approvals.decision(name, shown.update) is None
    assert main(["deny", shown.id, "--reason", "looks odd"]) == 0
    found = approvals.decision(name, shown.update)
    assert (found.approved, found.reason) == (False, "looks odd")
    assert "denied" in capsys.readouterr().out


def test_a_decision_is_in_the_audit_chain(home, asked):
    _, name, shown = asked
    assert main(["approve", shown.id]) == 0
    (line,) = (home / "audit" / "chain.jsonl").read_text().splitlines()
    for said in ("approved", name, shown.update, shown.terms_digest):
        assert said in line


def test_a_site_whose_audit_chain_is_broken_lets_nothing_go(home, asked, capsys):
    approvals, name, shown = asked
    (home / "audit" / "head.json").unlink()
    assert main(["approve", shown.id]) == 1
    assert approvals.decision(name, shown.update) is None


@pytest.mark.parametrize("name", ["../../policy", "", "000001-train-0123456789abcdef", "*"])
def test_an_id_is_no_path(asked, name, capsys):
    assert main(["approve", name]) == 2
    assert "unknown id" in capsys.readouterr().err


def test_an_evaluation_waits_like_an_update(home, capsys):
    sending = sending_of(LATER, kind="evaluate", training=None)
    shown = shown_of(sending, update_of(sending))
    approvals = Approvals(home)
    approvals.request(work_id(sending.order.key()), shown)
    assert main(["approvals", shown.id]) == 0
    out = capsys.readouterr().out
    assert "metric loss" in out
    assert "all of it is as planned" in out
    assert main(["approve", shown.id]) == 0
    assert approvals.approved_before(shown.terms_digest, "evaluate")
