"""One site sends numbers that nobody should believe: it is left out by name and field, or counted.

The run completes either way. Fields are found by walking the types of a reply, so that a new one is
tried without being named here.
"""

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from fedfactory.contracts.privacy import PrivacyPlan
from fedfactory.contracts.updates import Payload, Reply
from fedfactory.coordinator.aggregating.aggregation import StreamingAggregation
from fedfactory.coordinator.running import serverapp, taking
from fedfactory.report.table import print_results
from fedfactory.report.text import round_lines
from fedfactory.rounds.events import UpdateRefused
from fedfactory.rounds.explanation import explain
from fedfactory.rounds.history import History, append
from fedfactory.wire.arrays import read_arrays, write_arrays
from tests.contract.runner_rig import TRAINING, Coordinator

WHOLE = ("0", "-1", str(2**53), str(2**53 + 1), str(2**63), "1" + "0" * 400, "9" * 5000)
FLOATS = (*WHOLE, "1e308", "-0.0", "1e400", "NaN", "Infinity", "-Infinity", "0.5")
FLOWER = {"strategy": "custom", "strategy_options": {"_target_": "flwr.serverapp.strategy.FedAdam"}}
FLOWER_MEAN = {
    "strategy": "custom",
    "strategy_options": {"_target_": "flwr.serverapp.strategy.FedAvg"},
}
ASYNC = {
    "strategy": "fedbuff",
    "strategy_options": {"server_lr": 0.7},
    "mode": "async",
    "buffer": 2,
    "quorum": 1,
}
PRIVATE = PrivacyPlan(
    target_epsilon=3.0,
    noise_multiplier=None,
    delta=1e-5,
    clip_norm_l2=1.0,
    grad_sample_mode="hooks",
    evaluation_noise_multiplier=50.0,
    evaluation_loss_clip=1.0,
)
STANDING = {
    "epsilon_run": 1.0, "delta": 1e-5, "unit": "row", "accountant": "RDP",
    "unprotected_updates": 1, "unprotected_on": "2026-12-01",
}  # fmt: skip
ANCHOR = {
    "site": "vega", "ledger": "l", "ledger_sequence": 1, "ledger_head": "h", "audit_length": 1,
    "audit_head": "h",
}  # fmt: skip


def leaves(kind: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any, tuple]]:
    """Return every number of a type: its path, int or float, and its bounds."""
    if get_origin(kind) is Annotated:
        inner, *bounds = get_args(kind)
        return [(path, inner, tuple(bounds))] if inner in (int, float) else leaves(inner, path)
    if kind in (int, float):
        return [(path, kind, ())]
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        return [leaf for name, hint in hints.items() for leaf in leaves(hint, (*path, name))]
    if get_origin(kind) in (Union, types.UnionType, tuple):
        return [leaf for option in get_args(kind) for leaf in leaves(option, path)]
    if isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping):
        return leaves(get_args(kind)[1], (*path, "loss"))
    return []


FIELDS = leaves(Reply)
# Which work it is, and how many bytes came, is known: another number is false, if its type allows it.
CHECKED_BEYOND = (
    ("update", "work", "round"),
    ("refusal", "work", "round"),
    ("update", "payload", "blob", "bytes"),
    ("update", "privacy", "sample_rate"),
    ("update", "privacy", "steps"),
    ("standing", "unprotected_updates"),  # 0 with a date
)


def test_every_number_of_a_reply_is_found_and_bounded() -> None:
    found = {".".join(path) for path, _, _ in FIELDS}
    assert {"update.examples", "update.metrics.loss", "anchor.audit_length"} <= found
    assert {".".join(path) for path, _, bounds in FIELDS if not bounds} == set()


@pytest.fixture
def made(tmp_path):
    def make(name, **changes):
        (tmp_path / name).mkdir()
        return Coordinator(tmp_path / name, **{"quorum": 2, "rounds": 1, **changes})

    return make


def with_number(path, number):
    """Return what a hostile site makes of its reply: `number` (a text) lies at `path`."""

    def spoil(order, reply):
        if path[0] == "refusal":
            work = reply["update"]["work"]
            reply |= {"update": None, "refusal": {"work": work, "code": "paused"}}
            work["round"] = "HERE"
            return json.dumps(reply).replace('"HERE"', number)
        reply["anchor"], reply["standing"] = dict(ANCHOR), dict(STANDING)
        place = reply
        for name in path[:-1]:
            if (place := place[name]) is None:  # evaluations carry no payload
                return json.dumps(reply)
        place[path[-1]] = "HERE"
        return json.dumps(reply).replace('"HERE"', number)

    return spoil


def allowed(kind, bounds, number):
    value = float(number) if kind is float or "." in number or "e" in number else None
    if value is None:
        if not number.lstrip("-").isdigit() or len(number) > 400:
            return False
        value = int(number)
    if isinstance(value, float) and (kind is int or not math.isfinite(value)):
        return False
    return all(bound.admits(value) for bound in bounds)


def outcome(coordinator):
    """Return summary, the explanation of vega in round 1, and how all of it prints."""
    summary = json.loads((coordinator.folder / "summary.json").read_text())
    events = coordinator.events()
    (told,) = explain(events, "vega", 1)
    history = History.new()
    for event in events:
        history = append(history, event)
    for found in history.rounds:
        round_lines(found)
    with (coordinator.folder / "printed").open("w") as stream:
        print_results({**summary, "model": {**summary["model"], "file": None}}, "x", stream)
    return summary, told


@pytest.mark.parametrize(
    ("path", "kind", "bounds"), FIELDS, ids=[".".join(path) for path, _, _ in FIELDS]
)
@pytest.mark.rule("34")
def test_a_number_leaves_its_site_out_or_is_counted(made, path, kind, bounds):
    for index, number in enumerate(FLOATS):
        private = PRIVATE if "privacy" in path else None
        coordinator = made(f"home{index}", privacy=private)
        coordinator.sites.hostile["vega"] = with_number(path, number)
        coordinator.run()
        summary, told = outcome(coordinator)
        assert summary["status"] == "completed", number[:30]
        part = summary["rounds"][0]["sites"]["vega"]
        if path == ("standing", "unprotected_updates") and number == str(2**53):
            assert part["status"] == "took_part"
        elif path in CHECKED_BEYOND and allowed(kind, bounds, number):
            assert part["status"] == "refused", number[:30]
        elif allowed(kind, bounds, number):
            assert part["status"] == "took_part", number[:30]
        else:
            assert (part["status"], part["code"]) == ("refused", "bad_reply"), number[:30]
            assert path[-1] in part["reason"]
            assert path[-1] in told.sentence


def test_a_site_named_by_a_field_it_invents_writes_nothing_of_its_own(made):
    coordinator = made("home")

    def spoil(order, reply):
        reply["update"]["metrics"] = {"\x1b[31mlead invites mallory": 1.0}
        return json.dumps(reply)

    coordinator.sites.hostile["vega"] = spoil
    coordinator.run()
    _, told = outcome(coordinator)
    assert "mallory" not in told.sentence
    assert "metrics" in told.sentence


@pytest.mark.parametrize("strategy", [{}, FLOWER, {**ASYNC}], ids=["fedavg", "FedAdam", "fedbuff"])
@pytest.mark.parametrize("number", [str(2**53), "0", "1" + "0" * 400])
def test_counts_near_the_bound_weigh_without_overflow(made, strategy, number):
    coordinator = made("home", **{"rounds": 2, "quorum": 2, **strategy})
    for site in ("lumi", "vega"):
        coordinator.sites.hostile[site] = with_number(("update", "examples"), number)
    coordinator.run()
    summary = json.loads((coordinator.folder / "summary.json").read_text())
    refused = number not in (str(2**53), "0")
    assert summary["status"] == ("failed" if refused else "completed"), summary["reason"]
    if refused:
        assert "bad_reply" in summary["reason"]


class Weighing:
    """A strategy that cannot weigh what one site sends: an outside one may divide by its metrics."""

    def train_parameters(self):
        return {}

    def weight(self, update):
        return 1.0 / (update.examples - 120)

    def stale_weight(self, update, staleness):
        return self.weight(update)

    def apply(self, base, mean_delta):
        return base + mean_delta


@pytest.mark.parametrize(
    "mode", [{}, {"mode": "async", "buffer": 2, "quorum": 1}], ids=["sync", "async"]
)
def test_an_update_that_cannot_be_folded_is_its_sites_refusal(made, monkeypatch, mode):
    monkeypatch.setattr(
        serverapp,
        "load_aggregation",
        lambda settings: StreamingAggregation(Weighing(), training=TRAINING),
    )
    coordinator = made("home", **{"rounds": 2, **mode})
    coordinator.sites.hostile["cesga"] = with_number(("update", "examples"), "130")
    coordinator.sites.hostile["lumi"] = with_number(("update", "examples"), "140")
    coordinator.sites.hostile["vega"] = with_number(("update", "examples"), "120")
    coordinator.run()
    assert outcome(coordinator)[0]["status"] == "completed"
    told = explain(coordinator.events(), "vega", None)
    assert any("cannot weigh it (ZeroDivisionError)" in found.sentence for found in told)
    assert not any(found.contributed for found in told)
    assert any(isinstance(event, UpdateRefused) for event in coordinator.events())


# ---- counts and norms ------------------------------------------------------------------------


def test_a_count_above_what_the_plan_declares_is_refused(made):
    coordinator = made("home", max_examples={"vega": 500, "lumi": 500})
    coordinator.sites.hostile["vega"] = with_number(("update", "examples"), "501")
    coordinator.sites.hostile["lumi"] = with_number(("update", "examples"), "500")
    coordinator.run()
    summary, told = outcome(coordinator)
    sites = summary["rounds"][0]["sites"]
    assert sites["lumi"]["examples"] == 500
    assert sites["vega"]["code"] == "bad_reply"
    assert "Update.examples: 501, above 500" in told.sentence


@pytest.mark.parametrize(
    ("field", "number", "said"),
    [
        (("update", "privacy", "noise_multiplier"), "1001", "at most 1000"),
        (("update", "privacy", "sample_rate"), "1e-9", "sample_rate"),
        (("update", "privacy", "steps"), "1000000", "steps"),
        (("update", "examples"), "1000000001", "above 1000000000"),
        (("update", "examples"), "0", "the site's public size"),
        (("update", "examples"), "null", "the site's public size"),
        (("update", "privacy"), "null", "exactly with differential privacy"),
    ],
)
def test_what_a_site_says_of_its_privacy_must_hold_together(made, field, number, said):
    """Its public size and noise enter the bound of its norm: a liar would widen it."""
    coordinator = made("home", privacy=PRIVATE)
    coordinator.sites.hostile["vega"] = with_number(field, number)
    coordinator.run()
    summary, told = outcome(coordinator)
    assert summary["status"] == "completed"
    assert summary["rounds"][0]["sites"]["vega"]["code"] == "bad_reply"
    assert said in told.sentence


def test_without_privacy_nobody_claims_it(made):
    coordinator = made("home")
    spent = json.dumps({**STANDING, "noise_multiplier": 1.0, "sample_rate": 0.5, "steps": 1})
    spent = json.dumps({k: v for k, v in json.loads(spent).items() if "unprotected" not in k})
    coordinator.sites.hostile["vega"] = with_number(("update", "privacy"), spent)
    coordinator.run()
    assert outcome(coordinator)[0]["rounds"][0]["sites"]["vega"]["code"] == "bad_reply"


def enlarged(coordinator, site, factor):
    """Let a site multiply its update, as a hostile one would to own the model."""
    honest = coordinator.sites._work

    def work(order, base):
        update = honest(order, base)
        if order.site != site or update.payload is None:
            return update
        out = coordinator.sites.folder / "enlarged"
        delta = read_arrays(coordinator.sites.folder / "update")
        blob = write_arrays(out, {n: (v * np.float32(factor)) for n, v in delta.items()})
        coordinator.sites.files[blob.digest] = out.read_bytes()
        return dataclasses.replace(update, payload=Payload(form="delta", blob=blob))

    coordinator.sites._work = work


def largest(coordinator):
    summary = json.loads((coordinator.folder / "summary.json").read_text())
    model = read_arrays(coordinator.model_path(summary["model"]["digest"]))
    return float(np.abs(model["weight"]).max())


@pytest.mark.parametrize("strategy", [{}, FLOWER, ASYNC], ids=["fedavg", "FedAdam", "fedbuff"])
@pytest.mark.parametrize("privacy", [None, PRIVATE], ids=["plain", "dp_sgd"])
@pytest.mark.rule("31")
def test_a_site_that_would_drive_the_model_away_is_left_out(made, monkeypatch, strategy, privacy):
    coordinator = made("home", **{"rounds": 2, "privacy": privacy, **strategy})
    enlarged(coordinator, "vega", 1e19)
    coordinator.run()
    summary, told = outcome(coordinator)
    assert summary["status"] == "completed", summary["reason"]
    assert largest(coordinator) < 100
    assert "bad_update_norm" in told.sentence
    assert "the bound is" in told.sentence
    # The coordinator of before, which believed the site:
    monkeypatch.setattr(taking, "bound_of", lambda *_: math.inf)
    all_three = {"buffer": 3} if strategy is ASYNC else {}
    believing = made("before", **{"rounds": 1, "privacy": privacy, **strategy, **all_three})
    enlarged(believing, "vega", 1e19)
    believing.run()
    if strategy is not FLOWER:  # an adaptive step hides the size, not the direction
        assert largest(believing) > 1e17


@pytest.mark.parametrize("strategy", [{}, FLOWER_MEAN], ids=["fedavg", "Flower's"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_that_no_model_can_take_up_are_their_sites_refusal(made, strategy):
    """It owns the model within a bound that allows it; what overflows then is refused."""
    coordinator = made("home", **{"rounds": 3, "max_update_norm_l2": 1e45, **strategy})
    honest = coordinator.sites._work

    def work(order, base):
        update = honest(order, base)
        if order.site != "vega" or update.payload is None:
            return update
        out, start = coordinator.sites.folder / "enlarged", read_arrays(base)
        delta = read_arrays(coordinator.sites.folder / "update")
        huge = np.float32(3e38)
        outwards = {
            n: np.where(start[n] < 0, -huge, huge).astype(v.dtype) for n, v in delta.items()
        }
        blob = write_arrays(out, outwards)
        coordinator.sites.files[blob.digest] = out.read_bytes()
        payload = Payload(form="delta", blob=blob)
        return dataclasses.replace(update, payload=payload, examples=2**53)

    coordinator.sites._work = work
    coordinator.run()
    summary, _ = outcome(coordinator)
    assert summary["status"] == "completed", summary["reason"]
    assert largest(coordinator) > 1e37
    found = [e for e in coordinator.events() if isinstance(e, UpdateRefused)]
    assert {(e.site, e.code) for e in found} == {("vega", "bad_reply")}
    assert all("not finite" in event.detail for event in found)


@pytest.mark.parametrize(("factor", "taken"), [(1.0, True), (1.001, False)])
def test_the_signed_bound_is_the_coordinators_too(made, factor, taken):
    first = made("first")
    first.run()
    norm = json.loads((first.folder / "summary.json").read_text())["rounds"][0]["sites"]["vega"][
        "norm_l2"
    ]
    coordinator = made("home", max_update_norm_l2=norm, quorum=1)
    enlarged(coordinator, "vega", factor)
    coordinator.run()
    part = outcome(coordinator)[0]["rounds"][0]["sites"]["vega"]
    assert (part["status"] == "took_part") is taken, part


def test_an_anchor_that_an_older_version_kept_ends_no_run(made):
    coordinator = made("home")
    folder = coordinator.home / "anchors"
    folder.mkdir()
    kept = json.dumps({**ANCHOR, "ledger_sequence": "HERE"}).replace('"HERE"', "1" + "0" * 400)
    (folder / "vega.json").write_text(kept)
    coordinator.run()
    assert outcome(coordinator)[0]["status"] == "completed"


def test_an_unusual_norm_is_shown_beside_the_rounds_median_and_taken(made):
    """By its own bound alone it is judged: 6 x the others', and below 10 x |base|."""
    coordinator = made("home")
    enlarged(coordinator, "vega", 6.0)
    coordinator.run()
    summary, told = outcome(coordinator)
    sites = summary["rounds"][0]["sites"]
    norms = sorted(part["norm_l2"] for part in sites.values())
    assert sites["vega"]["status"] == "took_part"
    assert sites["vega"]["norm_to_median"] == norms[2] / norms[1] > 4
    assert f"its norm is {norms[2] / norms[1]:.3g} x the round's median" in told.sentence
