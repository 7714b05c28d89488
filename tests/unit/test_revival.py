"""A worker that died idle is started again soon, and one that cannot live is not hammered."""

from site_agents.executors.revival import LONGEST_PAUSE_S, YOUNG_S, Revival


def test_after_a_long_life_at_once_and_after_short_ones_ever_later():
    revival, now, pauses = Revival(), 0.0, []
    for _ in range(12):
        dead = revival.dead(now, now + 2.0)
        assert dead.dead(now, now + 3.0) == dead
        assert not dead.is_due(now + 2.0)
        assert dead.due_at is not None
        pauses.append(dead.due_at - now - 2.0)
        assert dead.is_due(dead.due_at)
        revival, now = dead.lives(), dead.due_at
        assert not revival.is_due(now + 1e6)
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert pauses[-1] == LONGEST_PAUSE_S
    old = revival.dead(now, now + YOUNG_S)
    assert old.is_due(now + YOUNG_S)
    assert old.deaths == 0
