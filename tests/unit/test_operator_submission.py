"""What is submitted: who takes part, what is signed, what is refused before anybody is asked."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from fedfactory.cli.composing import compose_run
from fedfactory.config import run_config
from fedfactory.contracts.errors import EnvironmentFailedError, IdentityError, UsageError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.aggregating.strategy_loading import check_strategy
from fedfactory.identity.signing import Signer, fingerprint, new_signing_key, verify
from fedfactory.operator.starting import made_model, make_initial_model
from fedfactory.operator.submission import (
    LONGEST_RUN_S,
    SHORTEST_TERM_S,
    check_choices,
    chosen_sites,
    run_plan,
)
from fedfactory.wire.arrays import file_ref
from tests.unit.operator_desk import NOW, member

INITIAL = BlobRef(digest="sha256:" + "1" * 64, bytes=1000)
MEMBERS = [
    member("cesga"),
    member("lumi"),
    member("invited", status="invited"),
    member("ana", role="operator"),
]


def configured(*words: str, sites=("cesga", "lumi")):
    composed = compose_run(words)
    return run_config(composed.values, composed.text, sites=sites)


def submitted(config, signer):
    return run_plan(
        config,
        coordinator="alliance",
        run_id="run-1",
        signer=signer,
        initial=INITIAL,
        central=None,
        now=NOW,
    )


def test_the_operator_signs_what_the_rounds_will_ask():
    signer = Signer(new_signing_key())
    config = configured("rounds=3", "rounds.quorum=1", "lr=0.5", "max_update_norm_l2=2")
    plan = submitted(config, signer)
    terms = plan.terms
    assert verify(terms, plan.signed.signature) == fingerprint(signer.public_key)
    assert (terms.run_id, terms.sites, terms.rounds) == ("run-1", ("cesga", "lumi"), 3)
    assert terms.training.lr == 0.5
    assert terms.max_update_norm_l2 == 2.0
    assert terms.max_model_bytes == 1500
    assert terms.evaluate
    assert plan.rules.quorum == 1
    with pytest.raises(IdentityError):
        verify(plan, plan.signed.signature)


def test_no_two_submissions_share_a_nonce():
    signer = Signer(new_signing_key())
    nonces = {submitted(configured(), signer).terms.nonce for _ in range(3)}
    assert len(nonces) == 3


@pytest.mark.parametrize("words", [("rounds=1", "rounds.deadline_s=1"), ("rounds=100000",)])
def test_a_plan_outlives_an_outage_and_not_a_month(words):
    terms = submitted(configured(*words), Signer(new_signing_key())).terms
    assert SHORTEST_TERM_S < terms.not_after - NOW <= LONGEST_RUN_S


def test_who_takes_part():
    assert chosen_sites(MEMBERS, None, None) == ("cesga", "lumi")
    assert chosen_sites(MEMBERS, "lumi", None) == ("lumi",)
    assert chosen_sites(MEMBERS, None, {"sites": ["lumi", "cesga"]}) == ("cesga", "lumi")


@pytest.mark.parametrize(
    ("asked", "federation", "sentence"),
    [
        ("invited", None, "unknown site 'invited'; known: cesga, lumi"),
        ("lumi,lumi", None, "distinct names"),
        (",", None, "at least one"),
        (None, {"sites": ["ana"]}, "unknown site 'ana'"),
        (
            None,
            {"name": "numbered", "count": 2},
            "federation=numbered is for `fedfactory local` alone",
        ),
    ],
)
def test_who_cannot(asked, federation, sentence):
    with pytest.raises(UsageError, match=sentence):
        chosen_sites(MEMBERS, asked, federation)


def test_nobody_is_enrolled_yet():
    with pytest.raises(UsageError, match="fedfactory invite NAME"):
        chosen_sites([member("lumi", status="invited")], None, None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("strategy=custom", "strategy._target_=collections.OrderedDict"), "strategy._target_"),
        (("strategy=custom", "strategy._target_=nowhere.at.All"), "cannot be imported"),
        (("task=echo", "privacy=dp_sgd", "evaluate=false"), "privacy=dp_sgd: "),
    ],
)
def test_choices_that_cannot_be(words, sentence):
    with pytest.raises(UsageError, match=sentence):
        check_choices(configured(*words))


class NotInstalled(FedAvg):
    """No entry point names it: only a coordinator with `strategy_classes: any` makes it."""


def test_which_strategy_classes_are_made_is_left_to_the_coordinator():
    config = configured("strategy=custom", f"strategy._target_={__name__}.NotInstalled")
    check_choices(config)
    terms = config.draft().terms
    with pytest.raises(UsageError, match=r"`installed` here.*ask its administrator for `strategy"):
        check_strategy(terms, any_class=False)
    check_strategy(terms, any_class=True)


def test_a_public_set_is_looked_at_before_it_is_sent(tmp_path):
    path = tmp_path / "public.npz"
    np.savez(path, x=np.zeros((5, 3)), y=np.zeros(5))
    with pytest.raises(UsageError, match=r"public\.npz"):
        check_choices(configured(f"evaluation.central={path}"))
    np.savez(path, x=np.zeros((5, 64), np.float32), y=np.arange(5))
    check_choices(configured(f"evaluation.central={path}"))


def test_a_model_is_made_by_a_process_and_goes_on_from_a_file(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    made = made_model(make_initial_model(configured("task=digits"), first))
    assert made == file_ref(first)
    warm = configured("task=digits", f"model={first}")
    assert made_model(make_initial_model(warm, second)) == made


def test_a_file_that_does_not_fit_is_the_users_to_mend(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"no model at all")
    with pytest.raises((UsageError, EnvironmentFailedError)) as caught:
        made_model(make_initial_model(configured("task=digits", f"model={path}"), tmp_path / "o"))
    assert "Traceback" not in str(caught.value)
