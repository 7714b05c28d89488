"""Which revocations of operators a site keeps, for good, and what then no longer counts."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import EnvironmentFailedError, IntegrityError, ProtocolError
from fedfactory.contracts.revocations import OperatorRevocation, SignedRevocation
from fedfactory.identity.signing import Signer, fingerprint, new_signing_key
from site_agents.doctor.operators import judge_pins
from site_agents.policy import DataRule, OperatorPin, policy_text
from site_agents.policy.pins import day_text
from site_agents.rate import BURST
from site_agents.revocations import (
    REVOKED_FILE,
    Revocations,
    kept_revocations,
    revoked_keys,
)
from tests.policy_orders import pin

NOW = time.time()
PEOPLE = {name: Signer(new_signing_key()) for name in ("ana", "bob", "eve", "old")}
KEYS = {name: fingerprint(signer.public_key) for name, signer in PEOPLE.items()}
PINNED = {name: pin(KEYS[name]) for name in ("ana", "bob")} | {
    "old": pin(KEYS["old"], until="2020-01-01")
}


def revocation(operator: str, /, **changed: Any) -> OperatorRevocation:
    told = OperatorRevocation(
        coordinator="hub", operator=operator, key=KEYS[operator], reason="lost laptop", at=NOW
    )
    return replace(told, **changed)


def signed(by: str, operator: str, **changed: Any) -> str:
    told = revocation(operator, **changed)
    return to_json(SignedRevocation(revocation=told, signature=PEOPLE[by].sign(told)))


class Site:
    """A home with a policy, and what its audit chain was given."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.recorded: list[Any] = []
        self.full = False
        self.restart()
        self.pins(PINNED)

    def restart(self) -> None:
        self.revocations = Revocations(self.home, self._record)

    def pins(self, operators: dict[str, OperatorPin]) -> None:
        text = policy_text(
            coordinators={"hub": "sha256:" + "c" * 64},
            operators=operators,
            data={"d": DataRule(lineage="l", public_size=100, unit="row")},
            tasks={"digits": "d"},
        )
        (self.home / "policy.yaml").write_text(text)
        (self.home / "policy.yaml").chmod(0o600)

    def _record(self, entry: Any) -> None:
        if self.full:
            raise EnvironmentFailedError("the disk is full")
        self.recorded.append(entry)

    @property
    def revoked(self) -> set[str]:
        keys = revoked_keys(self.home)
        return {name for name, key in KEYS.items() if key in keys}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.rule("37")
def test_a_pinned_operator_revokes_another_and_it_is_kept(site: Site) -> None:
    site.revocations.take(signed("ana", "bob"))
    assert site.revoked == {"bob"}
    site.restart()
    assert site.revoked == {"bob"}
    assert (site.home / REVOKED_FILE).stat().st_mode & 0o777 == 0o600
    (entry,) = site.recorded
    assert (entry["event"], entry["actor"], entry["operator"], entry["key"]) == (
        "operator_revoked",
        "ana",
        "bob",
        KEYS["bob"],
    )
    (kept,) = kept_revocations(site.home)
    assert kept.told == f"'bob' by 'ana' on {day_text(time.time())}: 'lost laptop'"


def test_an_operator_may_revoke_themselves(site: Site) -> None:
    site.revocations.take(signed("bob", "bob"))
    assert site.revoked == {"bob"}


def forged() -> str:
    told = from_json(SignedRevocation, signed("eve", "bob"))
    claims = replace(told.signature, public_key=PEOPLE["ana"].public_key)
    return to_json(replace(told, signature=claims))


def moved() -> str:
    told = from_json(SignedRevocation, signed("ana", "old"))
    return to_json(replace(told, revocation=revocation("bob")))


def other_kind() -> str:
    """A signature of ana's over something else that encodes alike."""
    told = revocation("bob")
    signature = PEOPLE["ana"].sign(json.loads(to_json(told)))
    return to_json(SignedRevocation(revocation=told, signature=signature))


@pytest.mark.parametrize(
    "text",
    [
        signed("eve", "bob"),  # of a key that nobody pinned
        signed("old", "bob"),  # of a key whose pin has ended
        signed("ana", "eve"),  # of nobody here
        signed("ana", "bob", key="sha256:" + "d" * 64),  # a site's, or a key that nobody has
        signed("ana", "bob", coordinator="elsewhere"),
        forged(),
        moved(),
        other_kind(),
        "",
        "{}",
        "not json",
        signed("ana", "bob").replace('"reason":"lost laptop"', '"reason":"other"'),
        signed("ana", "bob")[:-1] + ',"more":1}',
        signed("ana", "bob") + " " * 9000,
        signed("ana", "bob").replace('"value":"', '"value":"!'),
    ],
)
def test_what_does_not_count_changes_nothing(site: Site, text: str) -> None:
    site.revocations.take(text)
    assert site.revoked == set()
    assert not (site.home / REVOKED_FILE).exists()
    assert site.recorded == []


@pytest.mark.parametrize(
    "changed",
    [
        {"operator": "a/b"},
        {"coordinator": ""},
        {"key": "md5"},
        {"reason": "x" * 301},
        {"at": -1.0},
        {"at": float("inf")},
        {"at": 1e300},
    ],
)
def test_every_field_has_a_bound(changed: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        revocation("bob", **changed)


def test_of_two_who_revoke_each_other_the_first_counts(site: Site) -> None:
    site.revocations.take(signed("ana", "bob"))
    site.revocations.take(signed("bob", "ana"))
    assert site.revoked == {"bob"}
    site.restart()
    site.revocations.take(signed("bob", "ana"))
    assert site.revoked == {"bob"}


def test_what_a_revoked_operator_signed_before_still_counts(site: Site) -> None:
    site.pins({**PINNED, "eve": pin(KEYS["eve"])})
    for text in (signed("bob", "eve"), signed("ana", "bob"), signed("bob", "eve")):
        site.revocations.take(text)
    assert site.revoked == {"eve", "bob"}


def test_replays_and_floods_leave_one_entry_for_each_pinned_key(site: Site) -> None:
    site.revocations.take(signed("ana", "bob"))
    before = (site.home / REVOKED_FILE).read_bytes()
    for number in range(200):
        site.revocations.take(signed("ana", "bob", reason=str(number), at=NOW + number))
        site.revocations.take(signed("eve", "ana", at=NOW + number))
        site.revocations.take(signed("ana", "eve", at=NOW + number))
    assert (site.home / REVOKED_FILE).read_bytes() == before
    assert len(site.recorded) == 1


def test_a_flood_of_what_does_not_count_is_passed_over(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(200):
        site.revocations.take(signed("eve", "bob", at=NOW + number))
    refusals = [one for one in caplog.records if "is not taken" in one.message]
    assert BURST <= len(refusals) <= BURST + 5
    site.revocations.take(signed("ana", "bob", reason="x"))  # known ones are still written down
    assert len(caplog.records) < 2 * BURST


def test_an_older_state_does_not_bring_a_key_back(site: Site) -> None:
    site.pins({**PINNED, "eve": pin(KEYS["eve"])})
    site.revocations.take(signed("ana", "bob"))
    older = (site.home / REVOKED_FILE).read_bytes()
    site.revocations.take(signed("ana", "eve"))
    for text in (signed("ana", "bob"), ""):  # what a coordinator says of fewer takes none back
        site.revocations.take(text)
    assert site.revoked == {"bob", "eve"}
    (site.home / REVOKED_FILE).write_bytes(older)  # a restored copy of the home
    site.restart()
    for text in (signed("ana", "bob"), signed("ana", "eve")):  # told again at every connection
        site.revocations.take(text)
    assert site.revoked == {"bob", "eve"}


def test_a_pin_that_comes_back_is_still_revoked(site: Site) -> None:
    site.revocations.take(signed("ana", "bob"))
    site.pins({"ana": PINNED["ana"]})
    site.pins({**PINNED, "robert": pin(KEYS["bob"])})
    assert site.revoked == {"bob"}


@pytest.mark.parametrize("content", ["", "{}", "half", '{"kept":[{}]}'])
def test_a_damaged_file_stops_all_and_is_not_written_over(site: Site, content: str) -> None:
    site.revocations.take(signed("ana", "bob"))
    path = site.home / REVOKED_FILE
    path.write_text(content)
    with pytest.raises(IntegrityError, match="no order is taken"):
        revoked_keys(site.home)
    site.revocations.take(signed("ana", "bob"))
    assert path.read_text() == content


def test_a_file_that_others_may_write_stops_all(site: Site) -> None:
    site.revocations.take(signed("ana", "bob"))
    (site.home / REVOKED_FILE).chmod(0o620)
    with pytest.raises(IntegrityError, match="may be written by"):
        revoked_keys(site.home)


def test_it_counts_before_it_is_recorded_and_is_recorded_later(site: Site) -> None:
    site.full = True
    site.revocations.take(signed("ana", "bob"))
    assert (site.revoked, site.recorded) == ({"bob"}, [])
    site.restart()
    site.full = False
    for _ in range(2):
        site.revocations.take(signed("ana", "bob"))
    assert len(site.recorded) == 1


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(PEOPLE)), st.sampled_from(sorted(PEOPLE))), max_size=8
    )
)
@settings(max_examples=40, deadline=None)
def test_any_order_of_revocations_is_as_the_rule_says(
    tmp_path_factory: pytest.TempPathFactory, told: list[tuple[str, str]]
) -> None:
    site = Site(tmp_path_factory.mktemp("home"))
    expected: set[str] = set()
    for by, operator in told:
        before = site.revoked
        site.revocations.take(signed(by, operator))
        if by in {"ana", "bob"} - expected and operator in PINNED:
            expected.add(operator)
        assert before <= site.revoked == expected
        assert len(kept_revocations(site.home)) == len(expected) <= len(PINNED)


@pytest.mark.rule("37")
def test_the_doctor_says_how_each_pin_stands(site: Site) -> None:
    from site_agents.policy import Confirmation

    site.revocations.take(signed("ana", "bob"))
    confirmed = Confirmation(by="maria", on="2026-01-01")
    pins = {
        **PINNED,
        "new": OperatorPin(key="sha256:" + "1" * 64, until="2999-01-01", confirmed=confirmed),
        "soon": OperatorPin(
            key="sha256:" + "2" * 64, until=day_text(NOW + 10 * 86400), confirmed=confirmed
        ),
        "last": OperatorPin(key="sha256:" + "3" * 64, until=day_text(NOW), confirmed=confirmed),
    }
    found = list(judge_pins(pins, kept_revocations(site.home), NOW))
    said = {name: f"{one.level}: {one.text}" for name, one in zip(pins, found, strict=True)}
    assert "warn" in said["ana"]
    assert "was never confirmed" in said["ana"]
    assert "bob is revoked" in said["bob"]
    assert "ended on 2020-01-01" in said["old"]
    assert said["new"] == "ok: new, confirmed by maria on 2026-01-01, until 2999-01-01"
    assert "in 10 days" in said["soon"]
    assert "in 0 days" in said["last"]
    assert all("confirm-operator" in one.todo for one in found[:1])
