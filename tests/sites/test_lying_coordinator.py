"""A coordinator that lies: whatever it asks, nothing is spent that was not reserved, nothing leaks.

The coordinator here holds keys that the site pins, so its signatures are good: only what it asks
for is wrong. Where even the signature is wrong, the test says so.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fedfactory.contracts.codec import from_json
from fedfactory.contracts.errors import ProtocolError, UsageError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.plans import SignedOrder
from fedfactory.contracts.updates import Reply
from fedfactory.identity.signing import Signer, new_signing_key
from tests.sites.rig import OPEN, PRIVACY, TRAINING, Coordinator, Site, changed

BIG = BlobRef(digest="sha256:" + "0" * 64, bytes=50_000)
HUGE = BlobRef(digest="sha256:" + "0" * 64, bytes=10**13)


@pytest.fixture(autouse=True)
def nothing_happened(request: pytest.FixtureRequest, site: Site) -> object:
    """After every refusal: no data touched, no budget spent, nothing received but codes."""
    yield
    if "happens" in request.keywords:
        return
    assert site.executions() == 0
    assert site.steps_spent() == 0
    assert list(site.received.iterdir()) == []
    assert {p.name for p in site.folder.iterdir()} <= {
        "home", "received", "base.safetensors", "executions",
    }  # fmt: skip


ORDERS = {
    "another task than planned": ({"task": "breast_cancer"}, "outside_plan"),
    "another parameter": ({"task_parameters": {"model": "cnn"}}, "outside_plan"),
    "a bigger model than planned": ({"base": BIG}, "outside_plan"),
    "10 TB of model": ({"base": HUGE}, "outside_plan"),
    "a round after the last": ({"round": 6}, "outside_plan"),
    "round 0": ({"round": 0}, "outside_plan"),
    "a negative round": ({"round": -1}, "outside_plan"),
    "more epochs": ({"training": dataclasses.replace(TRAINING, local_epochs=3)}, "outside_plan"),
    "larger batches": ({"training": dataclasses.replace(TRAINING, batch_size=400)}, "outside_plan"),
    "no privacy after all": ({"privacy": None}, "outside_plan"),
    "a looser clip": ({"privacy": dataclasses.replace(PRIVACY, clip_norm_l2=9.0)}, "outside_plan"),
    "more epsilon": ({"privacy": dataclasses.replace(PRIVACY, target_epsilon=9.0)}, "outside_plan"),
    "another site's work": ({"site": "lumi"}, "outside_plan"),
    "another run's plan": ({"run_id": "run-9"}, "outside_plan"),
    "a plan that it does not show": ({"terms_digest": "sha256:" + "1" * 64}, "outside_plan"),
    "another coordinator's name": ({"coordinator": "other"}, "not_authorised"),
}


@pytest.mark.parametrize("lie", ORDERS)
@pytest.mark.rule("15")
def test_an_order_outside_its_plan(site: Site, lie: str) -> None:
    change, code = ORDERS[lie]
    assert site.code(**change) in {code, "outside_plan"}


PLANS = {
    "a task the site does not allow": ({"task": "tabular", "task_parameters": {}}, "policy_task"),
    "a task nobody knows": ({"task": "no_such", "task_parameters": {}}, "policy_task"),
    "a task that is a path": (
        {"task": "../../etc/passwd", "task_parameters": {}}, "bad_order",
    ),
    "a parameter out of the schema": ({"task_parameters": {"model": "gpt"}}, "bad_parameters"),
    "a parameter too many": ({"task_parameters": {"model": "mlp", "path": "/etc"}}, "bad_parameters"),
    "too many epochs": (
        {"training": dataclasses.replace(TRAINING, local_epochs=6)}, "policy_parameters",
    ),
    "a learning rate out of range": (
        {"training": dataclasses.replace(TRAINING, lr=10.0)}, "policy_parameters",
    ),
    "too many rounds": ({"rounds": 11}, "policy_limits"),
    "too big a model": ({"max_model_bytes": 10**12}, None),  # the plan may; no order did
    "no privacy": ({"privacy": None}, "policy_privacy"),
    "too much epsilon": (
        {"privacy": dataclasses.replace(PRIVACY, target_epsilon=3.5)}, "policy_privacy",
    ),
    "another delta": ({"privacy": dataclasses.replace(PRIVACY, delta=1e-3)}, "policy_privacy"),
    "a model that has no DP-SGD": ({"task_parameters": {"model": "cnn_bn"}}, "bad_parameters"),
    "hardly any noise": (
        {"privacy": dataclasses.replace(PRIVACY, target_epsilon=None, noise_multiplier=0.01)},
        "budget_exhausted",
    ),
    "it is over": ({"not_after": 1000.0}, "outside_plan"),
    "not this site": ({"sites": ("lumi",)}, "outside_plan"),
}  # fmt: skip


@pytest.mark.parametrize("lie", [name for name, (_, code) in PLANS.items() if code])
def test_a_signed_plan_beyond_the_policy(site: Site, coordinator: Coordinator, lie: str) -> None:
    change, code = PLANS[lie]
    assert site.code(coordinator.terms(**change)) == code


@pytest.mark.rule("15")
def test_an_order_after_its_time(site: Site) -> None:
    assert site.code(expires_at=1000.0) == "expired"


@pytest.mark.parametrize("who", ["key", "operator"])
@pytest.mark.rule("36")
def test_a_key_that_the_policy_does_not_pin(site: Site, coordinator: Coordinator, who: str) -> None:
    setattr(coordinator, who, Signer(new_signing_key()))
    assert site.code() == "not_authorised"


@pytest.mark.rule("36")
def test_an_operators_key_signs_no_orders_and_a_coordinators_no_plans(
    site: Site, coordinator: Coordinator
) -> None:
    coordinator.key, coordinator.operator = coordinator.operator, coordinator.key
    assert site.code() == "not_authorised"


def _altered(text: str, *path: str, to: object) -> str:
    raw = json.loads(text)
    place = raw
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = to
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("envelope", "order", "round"), 2),
        (("envelope", "order", "seed"), 7),
        (("envelope", "order", "training", "lr"), 0.5),
        (("envelope", "number"), 99),
        (("envelope", "expires_at"), 9e9),
        (("envelope", "signed", "terms", "rounds"), 500),
        (("envelope", "signed", "terms", "privacy", "target_epsilon"), 500.0),
        (("signature", "value"), "AAAA"),
        (("signature", "value"), "no base64 \u2603"),
        (("signature", "public_key"), "no key"),
    ],
)
def test_an_altered_delivery(site: Site, path: tuple[str, ...], to: object) -> None:
    reply = site.answer(_altered(site.delivery(), *path, to=to))
    assert isinstance(reply, Reply)
    assert reply.refusal.code == "not_authorised"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "null",
        "[" * 100_000,
        '{"envelope":' * 20_000,
        json.dumps({"envelope": {}, "signature": {}}),
        "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
        '{"envelope": NaN}',
        json.dumps({"x": "y" * 10_000_000}),
    ],
    ids=["empty", "object", "null", "nested", "nested objects", "hollow", "text", "nan", "10 MB"],
)
def test_what_is_no_order_gets_no_answer(site: Site, text: str) -> None:
    assert site.answer(text) is None


def test_a_number_that_is_none_or_a_text_too_many(site: Site) -> None:
    for path, to in (
        (("envelope", "order", "round"), True),
        (("envelope", "order", "round"), 1.5),
        (("envelope", "order", "extra"), 1),
        (("envelope", "order", "kind"), "steal"),
        (("envelope", "order", "base", "digest"), "../../etc/passwd"),
    ):
        reply = site.answer(_altered(site.delivery(), *path, to=to))
        assert reply is None or reply.refusal.code == "not_authorised"


@pytest.mark.parametrize("name", ["../../../tmp/x", "/etc/passwd", "a\x00b", ".", "x" * 300, "\n"])
def test_path_tricks_in_names(site: Site, coordinator: Coordinator, name: str) -> None:
    """No name of a coordinator's choosing becomes a path, an answer, or more than quoted text."""
    for terms in (
        coordinator.terms(run_id=name),
        coordinator.terms(task=name),
        coordinator.terms(task_parameters={name: name}),
    ):
        reply = site.ask(terms, round=6)
        assert reply.refusal is not None
    outside = [p for p in site.folder.parent.rglob("*") if not p.is_relative_to(site.folder)]
    assert outside == []


@pytest.mark.happens
@pytest.mark.rule("14")
def test_a_replay_costs_nothing_and_gives_nothing_new(site: Site) -> None:
    text = site.delivery()
    first, again = site.answer(text), site.answer(text)
    assert first.update == again.update
    assert site.executions() == 1


@pytest.mark.happens
def test_orders_out_of_their_order_are_each_done_once(site: Site) -> None:
    for number in (3, 1, 2, 3, 1):
        assert site.code(round=number) is None
    assert site.executions() == 3


@pytest.mark.happens
@pytest.mark.rule("14")
def test_the_same_round_with_a_model_of_its_choosing_is_done_once(site: Site) -> None:
    """Two bases for one round would give two looks at the data for the price of one."""
    assert site.code(round=2) is None
    other = BlobRef(digest="sha256:" + "2" * 64, bytes=site.base.bytes)
    assert site.code(round=2, base=other) == "conflict"
    assert site.code(base=other) == "outside_plan", "round 1 starts from the signed model"


@pytest.mark.happens
def test_a_second_plan_for_the_same_run_takes_nothing(site: Site, coordinator: Coordinator) -> None:
    assert site.code() is None
    spent = site.steps_spent()
    again = coordinator.terms(nonce="n-2", rounds=10)
    assert site.code(again, round=2) == "budget_exhausted"
    assert site.steps_spent() == spent


@pytest.mark.happens
@pytest.mark.rule("3")
def test_no_number_of_runs_passes_the_lineages_cap(
    make_site: Callable[..., Site], coordinator: Coordinator
) -> None:
    site = make_site(epsilon_per_lineage=6.0)
    epsilons = []
    for number in range(30):
        terms = coordinator.terms(run_id=f"run-{number}", rounds=1, nonce=str(number))
        for kind in ("train", "evaluate"):
            site.ask(terms, kind=kind)
        budget = site.books._ledger.budget
        accountant = site.books._ledger.accountant
        from fedfactory.privacy.accounting import epsilon_of

        epsilons.append(epsilon_of(accountant, budget.spendings["patients"], 1e-5))
    assert epsilons == sorted(epsilons)
    assert 3.0 < epsilons[-1] <= 6.0


@pytest.mark.happens
def test_an_evaluation_more_than_planned(site: Site) -> None:
    assert [site.code(round=n, kind="evaluate") for n in range(1, 6)] == [None] * 5
    assert site.code(round=6, kind="evaluate") == "outside_plan"
    assert site.code(round=0, kind="evaluate") in {None, "outside_plan", "budget_exhausted"}
    spent = site.books._ledger.budget.spendings["patients"]
    assert sum(spent.values()) == 5


def test_evaluations_that_no_plan_paid_for(site: Site, coordinator: Coordinator) -> None:
    quiet = dataclasses.replace(PRIVACY, evaluation_noise_multiplier=None)
    assert site.code(coordinator.terms(privacy=quiet), kind="evaluate") is not None
    assert site.code(coordinator.terms(evaluate=False), kind="evaluate") is not None


@pytest.mark.happens
def test_a_receipt_that_is_ahead_stops_the_site(site: Site) -> None:
    reply = site.ask()
    ahead = dataclasses.replace(reply.anchor, ledger_sequence=reply.anchor.ledger_sequence + 1)
    assert site.code(round=2, receipt=ahead) == "books_broken"
    longer = dataclasses.replace(reply.anchor, audit_length=reply.anchor.audit_length + 1)
    assert site.code(round=2, receipt=longer) == "books_broken"
    other = dataclasses.replace(reply.anchor, ledger="another")
    assert site.code(round=2, receipt=other) == "books_broken"
    assert site.executions() == 1
    assert site.code(round=2, receipt=reply.anchor) is None


@pytest.mark.happens
def test_a_restored_home_stops_the_site(site: Site, tmp_path: Path) -> None:
    """The whole home, ledger and chain and heads alike, as it was before the last round."""
    import shutil

    site.ask()
    site.close()
    shutil.copytree(site.home, tmp_path / "backup")
    site.open()
    receipt = site.ask(round=2).anchor
    site.close()
    for path in (tmp_path / "backup").rglob("*"):  # in place: the ledger's file stays the same file
        if path.is_file():
            (site.home / path.relative_to(tmp_path / "backup")).write_bytes(path.read_bytes())
    for stale in site.home.glob("ledger.sqlite-*"):
        stale.unlink()
    site.open()
    assert site.code(round=3, receipt=receipt) == "books_broken"


@pytest.mark.happens
def test_without_privacy_the_plan_still_binds(
    make_site: Callable[..., Site], coordinator: Coordinator
) -> None:
    site = make_site(without_dp=OPEN)
    terms = coordinator.terms(privacy=None)
    assert site.code(terms, round=6) == "outside_plan"
    one_step = dataclasses.replace(TRAINING, local_epochs=1, max_steps=1)
    assert site.code(changed(terms, training=one_step), training=one_step) is not None
    assert site.executions() == 0


@pytest.mark.happens
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_mutation_of_a_delivery_gets_more_than_a_refusal(
    site: Site, data: st.DataObject
) -> None:
    """Whatever single value of a signed delivery is replaced, no work is done."""
    text = site.delivery(round=5)
    raw = json.loads(text)
    path = data.draw(st.sampled_from(list(_leaves(raw))))
    values = (st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
    place = raw
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = data.draw(st.one_of(*values))
    mutated = json.dumps(raw)
    assume(_read(mutated) != from_json(SignedOrder, text))  # 1 for 1.0 is the same order
    before = site.executions()
    reply = site.answer(mutated)
    assert reply is None or reply.refusal.code in {"not_authorised", "outside_plan"}
    assert site.executions() == before


def _read(text: str) -> SignedOrder | None:
    try:
        return from_json(SignedOrder, text)
    except (ProtocolError, UsageError):
        return None


def _leaves(value: object, path: tuple = ()) -> object:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, (*path, name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, (*path, number))
    else:
        yield path
