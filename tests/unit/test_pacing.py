"""Who rings when: few at once, in their turn, and nobody waits for one who does not look."""

from hypothesis import given
from hypothesis import strategies as st

from fedfactory.coordinator.gateway.pacing import AT_ONCE, LATE_AT_ONCE, PATIENCE_S, Pacing

SITES = [f"site-{number:03}" for number in range(200)]


def wanted(*sites):
    pacing = Pacing()
    for site in sites:
        pacing.want(site)
    return pacing


def test_one_site_rings_at_once_and_others_in_their_order():
    pacing = wanted(*SITES)
    assert pacing.due(0.0) == SITES[:AT_ONCE]
    assert pacing.due(0.5 * PATIENCE_S) == []
    pacing.fetched(SITES[3])
    assert pacing.due(0.5 * PATIENCE_S) == [SITES[AT_ONCE]]


def test_all_are_rung_once_when_each_fetches():
    pacing = wanted(*SITES)
    rung = []
    while ringing := pacing.due(0.0):
        rung += ringing
        for site in ringing:
            pacing.fetched(site)
    assert rung == SITES
    assert pacing.changes_at() is None


def test_who_is_rung_and_wanted_again_rings_again_afterwards():
    pacing = wanted("lumi")
    assert pacing.due(0.0) == ["lumi"]
    pacing.want("lumi")
    pacing.want("lumi")
    assert pacing.due(0.1) == []
    pacing.fetched("lumi")
    assert pacing.due(0.2) == ["lumi"]
    pacing.fetched("lumi")
    assert pacing.due(0.3) == []


def test_a_site_that_does_not_look_loses_its_place_in_time():
    pacing = wanted(*SITES[: AT_ONCE + 1])
    pacing.due(0.0)
    assert pacing.changes_at() == PATIENCE_S
    assert pacing.due(PATIENCE_S) == [SITES[AT_ONCE]]


def test_many_that_never_look_hold_up_nobody_a_second_time():
    dead, living = SITES[:100], SITES[100:]
    pacing = wanted(*dead)
    now = 0.0
    for _ in range(100):
        pacing.due(now)
        now += PATIENCE_S
    for site in SITES:
        pacing.want(site)
    rung = []
    while living_rung := [site for site in pacing.due(now) if site in living]:
        rung += living_rung
        for site in living_rung:
            pacing.fetched(site)
    assert rung == living


def test_who_was_late_is_rung_all_the_same_and_is_late_no_more_once_it_looks():
    pacing = wanted("lumi")
    pacing.due(0.0)
    pacing.due(PATIENCE_S)  # its time is over
    for site in (*SITES, "lumi"):
        pacing.want(site)
    assert pacing.due(PATIENCE_S) == [*SITES[:AT_ONCE], "lumi"]
    pacing.fetched("lumi")
    pacing.want("lumi")
    assert pacing.due(PATIENCE_S) == []  # behind those that came before it
    for site in SITES[:AT_ONCE]:
        pacing.gone(site)
    assert pacing.due(PATIENCE_S) == SITES[AT_ONCE : 2 * AT_ONCE]


def test_what_a_late_site_waits_for_moves_with_it():
    pacing = wanted("lumi")
    pacing.due(0.0)
    pacing.want("lumi")
    assert pacing.due(PATIENCE_S) == ["lumi"]  # late now, and rung as such
    pacing.want("lumi")
    pacing.fetched("lumi")
    assert pacing.due(PATIENCE_S) == ["lumi"]  # prompt again
    pacing.fetched("lumi")
    assert pacing.due(PATIENCE_S) == []
    assert pacing.changes_at() is None


def test_who_is_gone_takes_no_place():
    pacing = wanted(*SITES[: AT_ONCE + 1])
    pacing.due(0.0)
    pacing.gone(SITES[0])
    assert pacing.due(0.0) == [SITES[AT_ONCE]]
    pacing.gone(SITES[1])
    pacing.want(SITES[1])
    assert pacing.due(0.0) == [SITES[1]]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["want", "fetched", "gone"]),
        st.sampled_from(SITES[:20]),
        st.floats(0.0, 2 * PATIENCE_S),
    ),
    max_size=200,
)


@given(STEPS)
def test_every_ring_that_is_wanted_comes_and_few_hold_places(steps):
    pacing = Pacing()
    owed = set()
    now = 0.0
    for what, site, pause in steps:
        getattr(pacing, what)(site)
        if what == "want":
            owed.add(site)
        elif what == "gone":
            owed.discard(site)
        now += pause
        ringing = pacing.due(now)
        assert set(ringing) <= owed
        assert len(ringing) <= AT_ONCE + LATE_AT_ONCE
        owed.difference_update(ringing)
    while (at := pacing.changes_at()) is not None:
        assert at > now
        now = at
        owed.difference_update(pacing.due(now))
    assert not owed
