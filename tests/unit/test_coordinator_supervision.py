"""When the coordinator starts again what died, and when it gives up."""

import pytest

from fedfactory.coordinator.supervision import (
    DEATHS_TO_SUSPEND,
    FROZEN_S,
    HEALTHY_S,
    HELLO_S,
    LONG_LIFE_S,
    LONGEST_PAUSE_S,
    Restarts,
    RunSeen,
    next_step,
)


def seen(**changes):
    values = {
        "now": 1000.0,
        "flower_ready": True,
        "starter_stopped": False,
        "handed_at": None,
        "here": False,
        "alive_at": 1000.0,
        "deaths": 0,
        "died_at": 0.0,
    }
    return RunSeen(**{**values, **changes})


def test_the_first_death_costs_no_pause_and_those_after_it_ever_longer_ones():
    restarts = Restarts().began(0.0)
    pauses = []
    for death in range(1, 12):
        restarts = restarts.died(float(death))
        pauses.append(restarts.pause_s)
        restarts = restarts.began(float(death))
    assert pauses[:4] == [0.0, 0.5, 1.0, 2.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_long_life_forgives_the_deaths_before_it():
    restarts = Restarts(deaths=7).began(0.0)
    assert restarts.died(LONG_LIFE_S - 1).deaths == 8
    assert restarts.died(LONG_LIFE_S).deaths == 1


def test_answering_for_a_while_forgives_them_too_and_a_freeze_is_no_answer():
    restarts = Restarts(deaths=7).began(100.0)
    came_up = restarts.alive(103.0)
    assert came_up.alive(103.0 + HEALTHY_S).died(114.0).deaths == 1
    assert came_up.alive(102.0 + HEALTHY_S).died(120.0).deaths == 8
    assert came_up.died(103.0 + FROZEN_S).deaths == 8  # it answered once
    again = came_up.alive(103.0 + HEALTHY_S).began(115.0)
    assert again.died(116.0).deaths == 8


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, "start"),
        ({"flower_ready": False}, "wait"),
        ({"deaths": 1, "died_at": 1000.0}, "start"),
        ({"deaths": 3, "died_at": 999.5}, "wait"),
        ({"deaths": 3, "died_at": 998.9}, "start"),
        ({"deaths": DEATHS_TO_SUSPEND}, "suspend"),
        ({"handed_at": 999.0}, "wait"),
        ({"handed_at": 1000.0 - HELLO_S - 1}, "kill_superexec"),
        ({"handed_at": 1000.0 - FROZEN_S - 1}, "wait"),
        ({"handed_at": 1000.0 - FROZEN_S - 1, "starter_stopped": True}, "kill_superexec"),
        ({"handed_at": 999.0, "starter_stopped": True}, "wait"),
        ({"handed_at": 1.0, "here": True}, "wait"),
        ({"handed_at": 1.0, "here": True, "alive_at": 1000.0 - FROZEN_S - 1}, "kill"),
        # While SuperLink is away the ServerApp that is here is still looked after.
        ({"handed_at": 1.0, "here": True, "flower_ready": False}, "wait"),
    ],
)
def test_what_is_done_about_a_run(changes, step):
    assert next_step(seen(**changes)) == step
