"""When an agent tries again."""

from __future__ import annotations

import itertools

from site_agents.backoff import LONGEST_REFUSED_S, LONGEST_S, STEADY_S, Backoff


def test_a_line_that_stood_is_taken_up_at_once_every_time():
    backoff = Backoff()
    for chance in (0.0, 0.5, 1.0, 0.0):
        assert 0.2 <= backoff.after_cut(STEADY_S, chance) <= 0.4


def test_one_that_cannot_be_had_is_tried_every_few_seconds():
    backoff = Backoff()
    pauses = [backoff.after_cut(0.0, 1.0) for _ in range(20)]
    assert all(before <= after for before, after in itertools.pairwise(pauses))
    assert pauses[-1] == LONGEST_S
    assert sum(pauses[:10]) > 10, "thrown out again and again, it does not hammer"


def test_a_refusal_is_asked_about_rarely_and_forgotten_once_it_is_over():
    backoff = Backoff()
    pauses = [backoff.after_refusal(1.0) for _ in range(10)]
    assert pauses[0] >= 10
    assert pauses[-1] == LONGEST_REFUSED_S
    assert backoff.after_cut(0.0, 1.0) <= 0.4
    assert backoff.after_refusal(1.0) == pauses[0]
