"""`policy check` and `policy explain`, on a real home: which clause decides, and all the others."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.plans import Anchor, SignedOrder, SignedTerms
from fedfactory.contracts.privacy import PrivacyPlan
from fedfactory.identity.signing import Signer, fingerprint
from site_agents import control
from site_agents.cli.main import main
from site_agents.gates import GATES
from site_agents.policy import OneOf, Range, TaskRule
from site_agents.policy.text import render
from site_agents.setup import make_home
from tests.policy_orders import POLICY, TERMS, WITHOUT_DP, pin, sending_of


def signer() -> Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return Signer(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))


LEAD, OPERATOR, STRANGER = signer(), signer(), signer()
HERE = replace(
    POLICY,
    coordinators={"lead": fingerprint(LEAD.public_key)},
    operators={"ada": pin(fingerprint(OPERATOR.public_key))},
    tasks={"digits": TaskRule(source="scans", parameters={"model": OneOf(("mlp",))})},
)


@pytest.fixture(scope="module")
def first_home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("site") / "home"
    make_home(
        home,
        site="cesga",
        gateway_address="127.0.0.1:1",
        data={"scans": {"kind": "partition"}},
        policy_text=render(HERE),
    )
    return home


@pytest.fixture
def home(first_home, monkeypatch):
    """The home of the module, as it was made; a copy of its ledger would refuse to open."""
    (first_home / "policy.yaml").write_text(render(HERE))
    shutil.rmtree(first_home / "control")
    (first_home / "control").mkdir(mode=0o700)
    monkeypatch.setenv("FEDFACTORY_HOME", str(first_home))
    return first_home


def deliver(
    folder: Path,
    *,
    terms=None,
    lead=LEAD,
    operator=OPERATOR,
    receipt=None,
    task_parameters=None,
    **changes,
):
    """Write a signed delivery into a file, and return its path."""
    now = time.time()
    parameters = task_parameters or {"model": "mlp"}
    terms = replace(terms or TERMS, task_parameters=parameters, not_after=now + 100)
    plan = SignedTerms(terms=terms, signature=operator.sign(terms))
    sending = replace(
        sending_of(terms, **changes), signed=plan, expires_at=now + 50, receipt=receipt
    )
    path = folder / "order.json"
    path.write_text(to_json(SignedOrder(envelope=sending, signature=lead.sign(sending))))
    return path


def explained(path: Path, capsys) -> tuple[int, str, dict[str, str]]:
    """Return the exit code, the text above the gates, and each gate's verdict by its name."""
    code = main(["policy", "explain", str(path)])
    above, _, below = capsys.readouterr().out.partition("\n\n")
    rows = {}
    for line in below.splitlines():
        if line.startswith("  "):
            outcome, name, finding = re.split(r"  +", line.strip(), maxsplit=2)
            rows[name] = f"{outcome}: {finding}"
    return code, above, rows


def refusing(rows: dict[str, str]) -> set[str]:
    return {name for name, said in rows.items() if said.startswith(("REFUSES", "would refuse"))}


def test_an_allowed_order_and_every_gate(home, tmp_path, capsys):
    code, above, rows = explained(deliver(tmp_path), capsys)
    assert code == 0
    assert "ALLOWED; its result leaves by itself" in above
    assert fingerprint(LEAD.public_key) in above
    assert fingerprint(OPERATOR.public_key) in above
    assert list(rows) == [gate.name for gate in GATES]
    outcomes = {gate.name: rows[gate.name].partition(":")[0] for gate in GATES}
    assert {outcomes[gate.name] for gate in GATES if gate.needs in ("terms", "order")} == {"passes"}
    assert {outcomes[gate.name] for gate in GATES if gate.needs == "base"} == {"not known"}
    assert {outcomes[gate.name] for gate in GATES if gate.needs == "result"} == {"not asked"}
    assert outcomes["form of the data"] == "not known"
    # Under differential privacy no count decides, so there is nothing to wait for.
    assert outcomes["number of records"] == outcomes["number of local steps"] == "passes"


def test_nothing_is_changed_by_asking(home, tmp_path, capsys):
    before = (home / "ledger.head").read_bytes()
    assert explained(deliver(tmp_path), capsys)[0] == 0
    assert explained(deliver(tmp_path), capsys)[0] == 0
    assert (home / "ledger.head").read_bytes() == before


def test_one_that_waits_for_a_person(home, tmp_path, capsys):
    (home / "policy.yaml").write_text(render(replace(HERE, egress="first_round")))
    code, above, _ = explained(deliver(tmp_path), capsys)
    assert code == 0
    assert "ALLOWED; its result waits for a person" in above


def test_the_first_clause_decides_and_the_others_are_told(home, tmp_path, capsys):
    path = deliver(
        tmp_path,
        terms=replace(TERMS, rounds=11),
        base=BlobRef(digest="sha256:" + "b" * 64, bytes=2_000_000),
        round=2,
    )
    code, above, rows = explained(path, capsys)
    assert code == 1
    assert "REFUSED outside_plan: the order asks for more than its signed plan allows" in above
    assert "decided by planned model size (plan.max_model_bytes): a model of 2000000" in above
    against = refusing(rows)
    assert [name for name in rows if rows[name].startswith("REFUSES")] == ["planned model size"]
    # 10 evaluations are allowed and the plan has as many as rounds: 11.
    assert against == {
        "planned model size",
        "number of rounds",
        "model size",
        "number of evaluations",
    }


@pytest.mark.parametrize(("who", "key"), [("lead", "coordinators"), ("operator", "operators")])
def test_a_stranger_is_refused_by_the_key_that_is_not_pinned(home, tmp_path, capsys, who, key):
    code, above, _ = explained(deliver(tmp_path, **{who: STRANGER}), capsys)
    assert code == 1
    assert "REFUSED not_authorised" in above
    assert f"({key}): " in above


def test_data_parameters_that_are_left_open_are_explained(home, tmp_path, capsys):
    """And what to write: the order's own values, quoted."""
    series = {
        "kind": "classification",
        "label": "fails:0|1",
        "sensors": "heat:70:10",
        "order": "cycle",
        "window": 32,
        "stride": 8,
        "channels": 8,
    }
    fixed = {n: OneOf((series[n],)) for n in ("label", "sensors", "order", "stride")}
    path = deliver(tmp_path, terms=replace(TERMS, task="timeseries"), task_parameters=series)
    for window, code in ((None, 1), (OneOf((16, 32)), 1), (OneOf((32,)), 0)):
        parameters = fixed if window is None else {**fixed, "window": window}
        rule = TaskRule(source="scans", parameters=parameters)
        (home / "policy.yaml").write_text(render(replace(HERE, tasks={"timeseries": rule})))
        found, above, rows = explained(path, capsys)
        assert found == code
        verdict = rows["fixed data parameters"]
        assert ("parameters: {window: [32]}" in verdict) == bool(code)
        assert ("REFUSED policy_parameters" in above) == bool(code)


def test_an_altered_order_has_no_signature(home, tmp_path, capsys):
    path = deliver(tmp_path)
    path.write_text(path.read_text().replace('"round":1', '"round":2'))
    code, above, rows = explained(path, capsys)
    assert code == 1
    assert "decided by coordinator's signature (rule 15): the signature is not over" in above
    assert "would refuse: not_authorised" in rows["known coordinator"]
    assert "passes" in rows["planned round"]


def test_an_altered_plan_has_no_signature_either(home, tmp_path, capsys):
    path = deliver(tmp_path)
    path.write_text(path.read_text().replace('"rounds":5', '"rounds":9'))
    _, _, rows = explained(path, capsys)
    assert {"coordinator's signature", "operator's signature", "same plan"} <= refusing(rows)


@pytest.mark.parametrize("text", ["{", "[]", '{"sending": 1}', "[" * 100_000, "\x00"])
def test_no_order_at_all(home, tmp_path, capsys, text):
    path = tmp_path / "order.json"
    path.write_text(text)
    code, above, _ = explained(path, capsys)
    assert code == 2
    assert "REFUSED bad_order" in above


def test_what_a_coordinator_wrote_does_nothing_to_the_screen(home, tmp_path, capsys):
    path = tmp_path / "order.json"
    path.write_text('{"\\u001b[2J\\nALLOWED": 1, "' + "x" * 5000 + '": 2}')
    code, above, _ = explained(path, capsys)
    assert code == 2
    assert "\x1b" not in above
    assert len(above) < 1000
    code, above, rows = explained(deliver(tmp_path, task="a\x1b[2J\nALLOWED"), capsys)
    assert code == 1
    assert "\x1b" not in above + "".join(rows) + "".join(rows.values())


def test_a_file_that_is_not_there(home, tmp_path, capsys):
    assert main(["policy", "explain", str(tmp_path / "none.json")]) == 2
    assert "none.json cannot be read" in capsys.readouterr().err


def test_the_administrators_word(home, tmp_path, capsys):
    control.set(home, "paused", by="ada", reason="cooling")
    code, above, _ = explained(deliver(tmp_path), capsys)
    assert code == 1
    assert "REFUSED paused" in above
    assert "paused by ada: cooling" in above


def test_a_budget_that_does_not_cover_the_plan(home, tmp_path, capsys):
    """By noise alone a plan names no epsilon: only the ledger can tell that it does not fit."""
    privacy = PrivacyPlan(
        target_epsilon=None,
        noise_multiplier=0.4,
        delta=1e-5,
        clip_norm_l2=1.0,
        grad_sample_mode="hooks",
        evaluation_noise_multiplier=None,
        evaluation_loss_clip=5.0,
    )
    code, above, rows = explained(deliver(tmp_path, terms=replace(TERMS, privacy=privacy)), capsys)
    assert code == 1
    assert "REFUSED budget_exhausted" in above
    assert "do not fit epsilon 3 for the run" in above
    assert "passes" in rows["epsilon of the run"]


def test_a_coordinator_that_is_ahead_of_the_ledger(home, tmp_path, capsys):
    receipt = Anchor(
        site="cesga",
        ledger="other",
        ledger_sequence=9,
        ledger_head="sha256:" + "1" * 64,
        audit_length=0,
        audit_head="",
    )
    code, above, _ = explained(deliver(tmp_path, receipt=receipt), capsys)
    assert code == 1
    assert "REFUSED books_broken" in above


def test_what_only_a_worker_counts_is_said(home, tmp_path, capsys):
    (home / "policy.yaml").write_text(render(replace(HERE, without_dp=WITHOUT_DP)))
    code, _, rows = explained(deliver(tmp_path, terms=replace(TERMS, privacy=None)), capsys)
    assert code == 0
    for name in ("number of records", "number of local steps"):
        assert "not known" in rows[name]


def test_a_policy_that_is_not_valid_says_its_line(home, tmp_path, capsys):
    text = render(HERE).replace("rounds: 10", "rounds: ten")
    (home / "policy.yaml").write_text(text)
    line = text[: text.index("ten")].count("\n") + 1
    says = f"policy.yaml:{line}:11: limits.rounds"
    assert main(["policy", "check"]) == 2
    assert says in capsys.readouterr().err
    code, above, rows = explained(deliver(tmp_path), capsys)
    assert code == 1
    assert "REFUSED no_policy" in above
    assert says in above
    assert "not known: there is no valid policy file" in rows["number of rounds"]
    assert "passes" in rows["ledger and audit chain"]


# ---- check -------------------------------------------------------------------------------------


def test_a_policy_that_fits_its_site(home, capsys):
    assert main(["policy", "check"]) == 0
    assert HERE.version in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"coordinators": {}}, "coordinators: no key is pinned"),
        ({"operators": {}}, "operators: no key is pinned"),
        (
            {"operators": {"ada": replace(HERE.operators["ada"], until="2020-01-31")}},
            "operators.ada: the pin ended on 2020-01-31",
        ),
        (
            {"data": {"scans": replace(HERE.data["scans"], public_size=200_000)}},
            "data.scans.lineage: the delta of",
        ),
        ({"delta": 0.001}, "privacy.delta: 0.001 is not below 1 / data.scans.public_size"),
        (
            {"data": {**HERE.data, "xrays": HERE.data["scans"]}},
            "data.xrays: agent.yaml has no data source of that name",
        ),
        (
            {"data": {"scans": replace(HERE.data["scans"], lineage="north")}},
            "data.scans.lineage: the ledger has no budget for 'north'",
        ),
        (
            {"tasks": {"digit": TaskRule(source="scans", parameters={})}},
            "tasks.digit: unknown task 'digit'",
        ),
        (
            {"tasks": {"tabular": TaskRule(source="scans", parameters={})}},
            "tasks.tabular.parameters leaves label, numeric, categorical open",
        ),
        (
            {
                "tasks": {
                    "timeseries": TaskRule(
                        source="scans",
                        parameters={
                            "label": OneOf(("fails:0|1",)),
                            "sensors": OneOf(("heat:70:10",)),
                            "order": OneOf(("cycle", "time")),
                            "window": Range(8, 64),
                            "stride": Range(8, 8),
                        },
                    )
                }
            },
            "parameters: {order: [VALUE], window: [VALUE]}",
        ),
        (
            {"tasks": {"digits": TaskRule(source="scans", parameters={"depth": Range(1, 2)})}},
            "tasks.digits.parameters.depth: the task has no such parameter; it has model",
        ),
        (
            {"tasks": {"digits": TaskRule(source="scans", parameters={"model": OneOf(("vit",))})}},
            "tasks.digits.parameters.model: the task takes no 'vit'",
        ),
    ],
)
def test_what_does_not_fit_is_said(home, capsys, changes, says):
    (home / "policy.yaml").write_text(render(replace(HERE, **changes)))
    assert main(["policy", "check"]) == 1
    assert says in capsys.readouterr().out
