"""When the coordinator starts a run's process again, and when it gives up."""

import pytest

from fedfactory.coordinator.supervision import (
    DEATHS_TO_SUSPEND,
    FROZEN_S,
    HELLO_S,
    LONGEST_PAUSE_S,
    UNHEARD_S,
    RunSeen,
    next_step,
    pause_s,
)


def seen(**changes):
    values = {
        "now": 1000.0,
        "started_at": None,
        "greeted": False,
        "alive_at": 1000.0,
        "deaths": 0,
        "died_at": 0.0,
    }
    return RunSeen(**{**values, **changes})


def test_the_first_death_costs_no_pause_and_those_after_it_ever_longer_ones():
    pauses = [pause_s(deaths) for deaths in range(1, 12)]
    assert pauses[:4] == [0.0, 0.5, 1.0, 2.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, "start"),
        ({"deaths": 1, "died_at": 1000.0}, "start"),
        ({"deaths": 3, "died_at": 999.5}, "wait"),
        ({"deaths": 3, "died_at": 998.9}, "start"),
        ({"deaths": DEATHS_TO_SUSPEND}, "suspend"),
        ({"started_at": 999.0}, "wait"),
        ({"started_at": 1000.0 - FROZEN_S - 1}, "wait"),
        ({"started_at": 1000.0 - HELLO_S - 1}, "kill"),
        ({"started_at": 1.0, "greeted": True}, "wait"),
        ({"started_at": 1.0, "greeted": True, "alive_at": 1000.0 - FROZEN_S - 1}, "kill"),
        ({"started_at": 1.0, "greeted": True, "unheard_since": 1000.0 - UNHEARD_S}, "wait"),
        ({"started_at": 1.0, "greeted": True, "unheard_since": 999.0 - UNHEARD_S}, "kill"),
    ],
)
def test_what_is_done_about_a_run(changes, step):
    assert next_step(seen(**changes)) == step
