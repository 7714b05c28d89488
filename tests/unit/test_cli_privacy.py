"""`fedfactory privacy plan` answers what a site's agent would admit, by the same functions."""

from __future__ import annotations

import json

import pytest

from fedfactory.cli.main import main
from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.privacy import PrivacyPlan
from site_agents.accountant import RdpAccounting
from site_agents.admission import Caps, limits_of, plan_charges

QUESTION = ("--rounds", "20", "--batch-size", "64", "--delta", "1e-4")


def said(capsys, *words, code=0):
    assert main(["privacy", "plan", *words]) == code
    found = capsys.readouterr()
    return found.out if code == 0 else found.err


def plans(capsys, *words):
    return json.loads(said(capsys, *words, *QUESTION, "--json"))["plans"]


def test_it_says_what_the_agent_would_admit(capsys):
    (told,) = plans(capsys, "--records", "479", "--epsilon", "3")
    known = {}
    charges = plan_charges(
        RdpAccounting(known.get, known.__setitem__),
        PrivacyPlan(
            target_epsilon=3.0,
            noise_multiplier=None,
            delta=1e-4,
            clip_norm_l2=2.0,
            grad_sample_mode="ghost",
            evaluation_noise_multiplier=None,
            evaluation_loss_clip=9.0,
        ),
        TrainParameters(
            local_epochs=1, batch_size=64, lr=0.1, momentum=0.5, proximal_mu=0.1, max_steps=None
        ),
        rounds=20,
        evaluate=True,
        public_size=479,
        others={},
        limits=limits_of(
            PrivacyPlan(
                target_epsilon=3.0,
                noise_multiplier=None,
                delta=1e-4,
                clip_norm_l2=2.0,
                grad_sample_mode="hooks",
                evaluation_noise_multiplier=None,
                evaluation_loss_clip=9.0,
            ),
            Caps(epsilon_per_run=3.0, epsilon_per_lineage=3.0),
            1e-4,
        ),
    )
    assert charges[0].cost.noise_multiplier == told["noise"]
    assert charges[0].cost.sample_rate == told["sample_rate"]
    assert charges[0].steps == told["steps_per_round"] * 20
    assert 2.9 < told["epsilon"] <= 3.0


def test_the_planned_rounds_fit_and_the_cap_is_near(capsys):
    (told,) = plans(capsys, "--records", "479", "--epsilon", "3")
    assert told["rounds_to_cap"] == 20
    (far,) = plans(capsys, "--records", "479", "--epsilon", "3", "--lineage-epsilon", "10")
    assert far["noise"] == told["noise"]
    assert far["rounds_to_cap"] > 100


def test_more_records_need_less_noise_and_more_rounds_need_more(capsys):
    told = plans(capsys, "--records", "500", "5000", "--epsilon", "3")
    assert told[0]["noise"] > told[1]["noise"]
    table = said(
        capsys, "--records", "500", "--rounds", "10", "100", *QUESTION[2:], "--epsilon", "3"
    ).splitlines()
    assert table[3].split() == [
        *("RECORDS", "ROUNDS", "RATE", "STEPS", "A", "ROUND", "NOISE", "EPSILON"),
        *("ROUNDS", "TO", "3"),
    ]
    fewer, more = (line.split() for line in table[4:6])
    assert float(fewer[4]) < float(more[4])
    assert float(more[5]) <= 3.0


def test_a_noise_that_is_given_is_held_against_the_cap(capsys):
    (told,) = plans(capsys, "--records", "479", "--epsilon", "3", "--noise", "5")
    assert told["noise"] == 5.0
    assert told["epsilon"] < 3.0
    assert told["rounds_to_cap"] > 20
    (too_little,) = plans(capsys, "--records", "479", "--epsilon", "3", "--noise", "1.5")
    assert too_little["epsilon"] is None
    assert 0 < too_little["rounds_to_cap"] < 20


def test_evaluations_are_charged(capsys):
    (silent,) = plans(capsys, "--records", "479", "--epsilon", "3")
    (measured,) = plans(capsys, "--records", "479", "--epsilon", "3", "--evaluation-noise", "20")
    assert measured["noise"] > silent["noise"]
    assert measured["epsilon"] <= 3.0


def test_what_cannot_be_is_said(capsys):
    table = said(capsys, "--records", "10", "--epsilon", "0.001", *QUESTION)
    assert "keeps the cap" in table
    assert table.splitlines()[4].split()[4:] == ["-", "-", "-"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--records", "0", "--epsilon", "3"], "records=0"),
        (["--records", "10", "--epsilon", "-1"], "epsilon=-1"),
        (["--records", "10", "--epsilon", "nan"], "epsilon=nan"),
        (["--records", "10", "--epsilon", "3", "--noise", "0.01"], "noise=0.01"),
        (["--records", "10", "--epsilon", "3", "--noise", "nan"], "noise=nan"),
        (["--records", "10", "--epsilon", "3", "--delta", "2"], "privacy.delta=2"),
        (["--records", "10", "--epsilon", "3", "--batch-size", "0"], "batch_size=0"),
        (["--records", "ten", "--epsilon", "3"], "invalid int value"),
        (["--epsilon", "3"], "--records"),
    ],
)
def test_bad_input_is_one_line(capsys, words, told):
    error = said(capsys, *QUESTION, *words, code=2)
    assert told in error
    assert error.count("\n") == 1


def test_a_delta_that_says_nothing_of_one_record_is_warned_of_for_each_size(capsys):
    words = ["plan", "--records", "100", "479", "--rounds", "10", "--batch-size", "64"]
    assert main(["privacy", *words, "--epsilon", "3", "--delta", "0.005"]) == 0
    warned = capsys.readouterr().err
    assert warned.count("warning: ") == 1
    assert "delta 0.005 is not below 1 / 479 records" in warned
