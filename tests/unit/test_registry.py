"""The registry: an invitation admits one key, and only who is in good standing is heard."""

from __future__ import annotations

import hashlib
import multiprocessing
import sqlite3
import tempfile
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedfactory.contracts.errors import (
    EnvironmentFailedError,
    FedfactoryError,
    IdentityError,
    UnknownNameError,
    UsageError,
)
from fedfactory.coordinator.membership.registry import Registry
from fedfactory.coordinator.membership.registry_rows import Issued
from fedfactory.coordinator.membership.registry_schema import SCHEMA_VERSION
from fedfactory.identity.facts import CertificateFacts, public_key_text
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.signing import fingerprint
from tests.patience import HANG_S

CESGA = Peer(role=Role.SITE, name="cesga")
INVITED = Peer(role=Role.INVITED, name="cesga")
ANA = Peer(role=Role.OPERATOR, name="ana")
# Keys are told apart by their PEM; making them is what costs, so they are made once.
KEYS = [public_key_text(ec.generate_private_key(ec.SECP256R1()).public_key()) for _ in range(40)]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


SERIALS = iter(range(1, 10**9))


def made(clock: Clock, key: str, lifetime: float = 100, root: str = "root-1") -> Issued:
    facts = CertificateFacts(
        serial=f"{next(SERIALS):x}", not_after=clock.now + lifetime, public_key=key
    )
    return Issued(facts=facts, root=root)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock):
    with Registry(tmp_path / "registry.sqlite", clock) as opened:
        yield opened


def admit(registry: Registry, clock: Clock, token: int, key: int) -> Issued:
    issued = made(clock, KEYS[key])
    registry.accept(KEYS[token], KEYS[key], lambda _: issued, "0.1.0")
    return issued


def test_from_invitation_to_member(registry: Registry, clock: Clock) -> None:
    invitation = made(clock, KEYS[0])
    registry.invite(CESGA, invitation, by="ana")
    (member,) = registry.members()
    assert (member.status, member.fingerprint) == ("invited", None)
    registry.standing(INVITED, invitation.facts)
    issued = admit(registry, clock, 0, 1)
    registry.standing(CESGA, issued.facts)
    (member,) = registry.members(connected=["cesga"])
    assert (member.status, member.connected, member.version) == ("enrolled", True, "0.1.0")
    assert member.fingerprint == fingerprint(KEYS[1])
    assert registry.sites() == ("cesga",)


def test_a_token_admits_one_key_alone(registry: Registry, clock: Clock) -> None:
    registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
    first = admit(registry, clock, 0, 1)
    again = admit(registry, clock, 0, 1)  # its answer was lost
    for issued in (first, again):
        registry.standing(CESGA, issued.facts)
    with pytest.raises(IdentityError, match="used already"):
        admit(registry, clock, 0, 2)
    assert registry.sites() == ("cesga",)


def test_the_newest_invitation_counts(registry: Registry, clock: Clock) -> None:
    old, new = made(clock, KEYS[0]), made(clock, KEYS[1])
    registry.invite(CESGA, old, by="ana")
    registry.invite(CESGA, new, by="ana")
    with pytest.raises(IdentityError, match="newer one"):
        registry.standing(INVITED, old.facts)
    with pytest.raises(IdentityError, match="newer one"):
        admit(registry, clock, 0, 2)
    admit(registry, clock, 1, 2)
    with pytest.raises(UsageError, match="enrolled already"):
        registry.invite(CESGA, made(clock, KEYS[3]), by="ana")


def test_an_expired_invitation_admits_nobody(registry: Registry, clock: Clock) -> None:
    invitation = made(clock, KEYS[0])
    registry.invite(CESGA, invitation, by="ana")
    clock.now += 100
    with pytest.raises(IdentityError, match="ended"):
        registry.standing(INVITED, invitation.facts)
    with pytest.raises(IdentityError, match="expired"):
        admit(registry, clock, 0, 1)
    (member,) = registry.members()
    assert (member.status, member.reason) == ("expired", "the invitation was not used in time")


def test_revoked_is_refused_for_good_and_may_come_back_with_new_keys(
    registry: Registry, clock: Clock
) -> None:
    registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
    old = admit(registry, clock, 0, 1)
    registry.revoke(CESGA, by="ana", reason="disk stolen")
    with pytest.raises(IdentityError, match=r"cut off.*disk stolen.*new invitation"):
        registry.standing(CESGA, old.facts)
    with pytest.raises(IdentityError, match="cut off"):
        registry.renewed(CESGA, made(clock, KEYS[1]))
    with pytest.raises(IdentityError, match=r"cut off|is, or was"):
        admit(registry, clock, 0, 1)
    assert registry.sites() == ()
    assert [(m.status, m.reason) for m in registry.members()] == [("revoked", "disk stolen")]
    with pytest.raises(UsageError, match=r"'cesga' is cut off already \(disk stolen\)"):
        registry.revoke(CESGA, by="ana", reason="once more")
    registry.invite(CESGA, made(clock, KEYS[2]), by="ana")
    with pytest.raises(IdentityError, match="is, or was"):
        admit(registry, clock, 2, 1)
    new = admit(registry, clock, 2, 3)
    registry.standing(CESGA, new.facts)
    with pytest.raises(IdentityError, match="cut off"):
        registry.standing(CESGA, old.facts)


def test_an_invitation_is_withdrawn_by_revoking(registry: Registry, clock: Clock) -> None:
    registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
    registry.revoke(CESGA, by="ana", reason="sent to the wrong address")
    with pytest.raises(IdentityError, match="withdrawn"):
        admit(registry, clock, 0, 1)


def test_whose_certificate_ended_is_invited_again(registry: Registry, clock: Clock) -> None:
    registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
    old = admit(registry, clock, 0, 1)
    clock.now += 101
    with pytest.raises(IdentityError, match="has ended"):
        registry.standing(CESGA, old.facts)
    assert registry.members()[0].status == "expired"
    registry.invite(CESGA, made(clock, KEYS[2]), by="ana")
    assert registry.members()[0].status == "invited"
    registry.standing(CESGA, admit(registry, clock, 2, 3).facts)


def test_renewal(registry: Registry, clock: Clock) -> None:
    registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
    admit(registry, clock, 0, 1)
    clock.now += 90
    renewed = made(clock, KEYS[1])
    registry.renewed(CESGA, renewed, "0.2.0")
    clock.now += 50
    registry.standing(CESGA, renewed.facts)
    assert (registry.members()[0].status, registry.members()[0].version) == ("enrolled", "0.2.0")


def test_who_shows_what_was_not_made_here(registry: Registry, clock: Clock) -> None:
    registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
    issued = admit(registry, clock, 0, 1)
    with pytest.raises(IdentityError, match="not in the consortium's registry"):
        registry.standing(CESGA, made(clock, KEYS[1]).facts)
    for peer in (Peer(role=Role.OPERATOR, name="cesga"), Peer(role=Role.SITE, name="lumi")):
        with pytest.raises(IdentityError, match="not in the consortium's registry"):
            registry.standing(peer, issued.facts)


def test_the_last_operator_stays(registry: Registry, clock: Clock) -> None:
    registry.enlist(ANA, made(clock, KEYS[0]))
    with pytest.raises(UsageError, match="last operator"):
        registry.revoke(ANA, by="ana", reason="")
    registry.enlist(Peer(role=Role.OPERATOR, name="bo"), made(clock, KEYS[1]))
    registry.revoke(ANA, by="bo", reason="")
    with pytest.raises(UsageError, match="cannot be revoked"):
        registry.revoke(Peer(role=Role.COORDINATOR, name="alliance"), by="bo", reason="")
    with pytest.raises(UnknownNameError, match=r"unknown site 'lumi'; known: $"):
        registry.revoke(Peer(role=Role.SITE, name="lumi"), by="bo", reason="")
    with pytest.raises(UnknownNameError, match="there is operator 'bo': --role operator"):
        registry.revoke(Peer(role=Role.SITE, name="bo"), by="bo", reason="")


def test_nothing_of_a_refused_enrolment_stays(registry: Registry, clock: Clock) -> None:
    registry.invite(CESGA, made(clock, KEYS[0]), by="ana")

    def fails(_: Peer) -> Issued:
        raise IdentityError("the issuer has ended")

    with pytest.raises(IdentityError, match="issuer"):
        registry.accept(KEYS[0], KEYS[1], fails)
    assert [m.status for m in registry.members()] == ["invited"]
    admit(registry, clock, 0, 2)  # the token is still good, for any key


def test_who_rests_on_which_root(registry: Registry, clock: Clock) -> None:
    registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
    first = admit(registry, clock, 0, 1)
    registry.standing(CESGA, first.facts)
    renewed = made(clock, KEYS[1], root="root-2")
    registry.renewed(CESGA, renewed)
    assert [h.root for h in registry.holders()] == ["root-1"]  # its answer may have been lost
    registry.standing(CESGA, renewed.facts)
    assert [h.root for h in registry.holders()] == ["root-2"]
    registry.standing(CESGA, first.facts)  # an old connection lives on
    assert [h.root for h in registry.holders()] == ["root-2"]
    clock.now += 101
    assert registry.holders() == ()


# ---- several at once -----------------------------------------------------------------------------


def test_one_token_and_many_threads(registry: Registry, clock: Clock) -> None:
    registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
    issued = [made(clock, key) for key in KEYS]
    won, begin = [], threading.Barrier(12)

    def enrol(number: int) -> None:
        begin.wait()
        try:
            registry.accept(KEYS[0], KEYS[number], lambda _: issued[number])
            won.append(number)
        except IdentityError:
            pass

    threads = [threading.Thread(target=enrol, args=(number,)) for number in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    (member,) = registry.members()
    assert member.fingerprint == fingerprint(KEYS[won[0]])


def _enrol_elsewhere(path: Path, number: int, begin, won) -> None:
    clock, key = Clock(), KEYS[number]
    facts = CertificateFacts(serial=f"f{number}", not_after=clock.now + 100, public_key=key)
    with Registry(path, clock) as registry:
        begin.wait()
        try:
            registry.accept(KEYS[0], key, lambda _: Issued(facts=facts, root="r"))
            won.put(number)
        except IdentityError:
            won.put(None)


def test_one_token_and_several_processes(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "registry.sqlite"
    with Registry(path, clock) as registry:
        registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
    fork = multiprocessing.get_context("fork")
    begin, won = fork.Barrier(4), fork.Queue()
    processes = [
        fork.Process(target=_enrol_elsewhere, args=(path, n, begin, won)) for n in range(1, 5)
    ]
    for process in processes:
        process.start()
    winners = [won.get(timeout=HANG_S) for _ in processes]
    for process in processes:
        process.join()
    (winner,) = [number for number in winners if number is not None]
    with Registry(path, clock) as registry:
        assert [m.fingerprint for m in registry.members()] == [fingerprint(KEYS[winner])]


def test_a_shorter_renewal_does_not_end_the_longer_certificate(
    registry: Registry, clock: Clock
) -> None:
    """A member that is still heard is enrolled still: nobody is invited in its place."""
    registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
    issued = admit(registry, clock, 0, 1)
    registry.renewed(CESGA, made(clock, KEYS[1], lifetime=1))
    clock.now += 2
    registry.standing(CESGA, issued.facts)
    with pytest.raises(UsageError, match="enrolled already"):
        registry.invite(CESGA, made(clock, KEYS[2]), by="ana")


# ---- the file --------------------------------------------------------------------------------------


def test_it_is_the_owners_and_outlives_its_process(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "registry.sqlite"
    with Registry(path, clock) as registry:
        registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
        issued = admit(registry, clock, 0, 1)
    assert path.stat().st_mode & 0o077 == 0
    with Registry(path, clock) as registry:
        registry.standing(CESGA, issued.facts)


def test_another_version_and_damage_are_named(tmp_path: Path) -> None:
    newer = tmp_path / "newer.sqlite"
    Registry(newer).close()
    with sqlite3.connect(newer) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(UsageError, match="format 99"):
        Registry(newer)
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(hashlib.sha256(b"noise").digest() * 200)
    with pytest.raises(UsageError, match="damaged"):
        Registry(damaged)
    whole = newer.read_bytes()
    page = len(whole) // 4096 - 1
    damaged.write_bytes(whole[: page * 4096] + bytes([255]) * 4096)  # a page that no start reads
    with sqlite3.connect(damaged) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    database.close()
    with pytest.raises(UsageError, match="damaged"):
        Registry(damaged)
    with pytest.raises(EnvironmentFailedError):
        Registry(tmp_path / "absent" / "registry.sqlite")


# What version 2 had, and version 3 has no more: each site's node key, for Flower's SuperLink.
OF_VERSION_2 = """
CREATE TABLE members_2 (
    role TEXT NOT NULL,
    name TEXT NOT NULL,
    fingerprint TEXT NOT NULL UNIQUE,
    node_public_key TEXT UNIQUE,
    version TEXT,
    enrolled_at REAL NOT NULL,
    valid_until REAL NOT NULL,
    in_use INTEGER,
    seen_at REAL,
    PRIMARY KEY (role, name)
) STRICT;
INSERT INTO members_2
    SELECT role, name, fingerprint, iif(role = 'site', 'node of ' || name, NULL), version,
    enrolled_at, valid_until, in_use, seen_at FROM members;
DROP TABLE members;
ALTER TABLE members_2 RENAME TO members;
CREATE TABLE former_node_keys (public_key TEXT PRIMARY KEY) STRICT;
INSERT INTO former_node_keys VALUES ('node of lumi');
"""


@pytest.mark.parametrize("version", [1, 2])
def test_a_registry_of_an_older_version_keeps_its_members_and_what_was_cut_off(
    tmp_path: Path, clock: Clock, version: int
) -> None:
    path = tmp_path / "registry.sqlite"
    lumi = Peer(role=Role.SITE, name="lumi")
    with Registry(path, clock) as registry:
        registry.enlist(ANA, made(clock, KEYS[9]))
        registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
        here = admit(registry, clock, 0, 1)
        registry.standing(CESGA, here.facts)
        registry.seen("cesga")
        registry.invite(lumi, made(clock, KEYS[2]), by="ana")
        gone = admit(registry, clock, 2, 3)
        registry.revoke(lumi, by="ana", reason="left")
        before = registry.members(), registry.holders()
    with sqlite3.connect(path) as database:
        database.executescript(OF_VERSION_2)
        if version == 1:
            database.execute("DROP TABLE operator_revocations")
        database.execute(f"PRAGMA user_version = {version}")
    database.close()
    for _ in range(2):
        with Registry(path, clock) as registry:
            assert (registry.members(), registry.holders()) == before
            assert registry.sites() == ("cesga",)
            assert registry.operator_revocations() == ()
            registry.standing(CESGA, here.facts)
            with pytest.raises(IdentityError, match="cut off"):
                registry.standing(lumi, gone.facts)
    with sqlite3.connect(path) as database:
        tables = dict(database.execute("SELECT name, sql FROM sqlite_schema"))
    database.close()
    assert "former_node_keys" not in tables
    assert not any("node" in (sql or "") or "members_2" in (sql or "") for sql in tables.values())


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ("UPDATE members SET role = 'sitf'", "table members, row 1, role: expected one of"),
        ("UPDATE members SET name = 'a/b'", "table members, row 1, name: expected a member's name"),
        ("UPDATE members SET name = CAST(x'c3' AS TEXT)", "name: expected text in UTF-8"),
        ("UPDATE certificates SET fingerprint = 'md5'", "row 1, fingerprint: expected a key's"),
        ("UPDATE invitations SET expires_at = -1e9", "expires_at: expected a time in Unix seconds"),
    ],
)
def test_a_damaged_cell_is_named_by_its_place_and_not_by_what_it_holds(
    tmp_path: Path, clock: Clock, wrong: str, where: str
) -> None:
    path = tmp_path / "registry.sqlite"
    with Registry(path, clock) as registry:
        registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
        admit(registry, clock, 0, 1)
    with sqlite3.connect(path) as database:
        database.execute(wrong)
    database.close()
    with pytest.raises(UsageError, match="consortium show") as found:
        Registry(path, clock)
    assert where in str(found.value)
    assert str(path) in str(found.value)
    assert not any(held in str(found.value) for held in ("sitf", "a/b", "md5"))


def test_damage_while_it_is_in_use_refuses_everybody_and_says_what_to_do(
    tmp_path: Path, clock: Clock
) -> None:
    path = tmp_path / "registry.sqlite"
    with Registry(path, clock) as registry:
        registry.invite(CESGA, made(clock, KEYS[0]), by="ana")
        issued = admit(registry, clock, 0, 1)
    with Registry(path, clock) as registry:
        with sqlite3.connect(path) as another:  # a change of another's: what was read is read anew
            another.execute("UPDATE members SET seen_at = 1.0")
        another.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        another.close()
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(bytes([255]) * (path.stat().st_size - 4096))
        for ask in (
            lambda: registry.standing(CESGA, issued.facts),
            registry.members,
            registry.sites,
            lambda: registry.invite(ANA, made(clock, KEYS[2]), by="ana"),
        ):
            with pytest.raises(EnvironmentFailedError, match="is damaged: put the last copy"):
                ask()


# ---- everything in any order -----------------------------------------------------------------------

NAMES = ("cesga", "lumi")


class AnyOrder(RuleBasedStateMachine):
    """A model of the registry that remembers who ought to be heard."""

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.folder = tempfile.TemporaryDirectory()
        self.registry = Registry(Path(self.folder.name) / "registry.sqlite", self.clock)
        self.next_key = 0
        self.tokens: list[tuple[str, str]] = []  # key, name
        self.newest: dict[str, str] = {}
        self.used: dict[str, str] = {}  # token -> the key it admitted
        self.withdrawn: set[str] = set()
        self.current: dict[str, str] = {}  # name -> key in good standing, or ended
        self.gone: set[str] = set()  # keys that were cut off or replaced
        self.shown: list[tuple[str, CertificateFacts]] = []

    def teardown(self) -> None:
        self.registry.close()
        self.folder.cleanup()

    def fresh_key(self) -> str:
        self.next_key += 1
        return KEYS[self.next_key % len(KEYS)]

    def is_valid(self, name: str) -> bool:
        return any(
            owner == name
            and facts.public_key == self.current.get(name)
            and facts.not_after > self.clock.now
            for owner, facts in self.shown
        )

    @rule(name=st.sampled_from(NAMES), lifetime=st.integers(1, 50))
    @precondition(lambda self: self.next_key < len(KEYS) - 3)
    def invite(self, name: str, lifetime: int) -> None:
        token = self.fresh_key()
        peer, issued = Peer(role=Role.SITE, name=name), made(self.clock, token, lifetime)
        if self.is_valid(name):
            with pytest.raises(UsageError):
                self.registry.invite(peer, issued, by="ana")
            return
        self.registry.invite(peer, issued, by="ana")
        self.tokens.append((token, name))
        self.newest[name] = token

    @rule(data=st.data(), lifetime=st.integers(1, 50), is_same=st.booleans())
    @precondition(lambda self: self.tokens and self.next_key < len(KEYS) - 3)
    def enrol(self, data: st.DataObject, lifetime: int, is_same: bool) -> None:
        token, name = data.draw(st.sampled_from(self.tokens))
        key = self.used[token] if is_same and token in self.used else self.fresh_key()
        issued = made(self.clock, key, lifetime)
        admitted_before = self.used.get(token)
        try:
            self.registry.accept(token, key, lambda _: issued)
        except IdentityError:
            return
        assert admitted_before in (None, key), "a token admitted two keys"
        assert token == self.newest[name], "an invitation that was replaced admitted"
        assert token not in self.withdrawn
        assert key not in self.gone, "a key that was cut off came back"
        if (before := self.current.get(name)) not in (None, key):
            self.gone.add(str(before))
        self.used[token], self.current[name] = key, key
        self.shown.append((name, issued.facts))

    @rule(name=st.sampled_from(NAMES), lifetime=st.integers(1, 50))
    def renew(self, name: str, lifetime: int) -> None:
        if name in self.current:
            issued = made(self.clock, self.current[name], lifetime)
            self.registry.renewed(Peer(role=Role.SITE, name=name), issued)
            self.shown.append((name, issued.facts))

    @rule(name=st.sampled_from(NAMES))
    def revoke(self, name: str) -> None:
        try:
            self.registry.revoke(Peer(role=Role.SITE, name=name), by="ana", reason="")
        except UsageError:
            assert name not in self.current
            return
        if name in self.current:
            self.gone.add(self.current.pop(name))
        self.withdrawn |= {t for t, owner in self.tokens if owner == name and t not in self.used}

    @rule(seconds=st.integers(1, 30))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def only_the_right_ones_are_heard(self) -> None:
        for name, facts in getattr(self, "shown", ()):
            is_right = (
                facts.not_after > self.clock.now and self.current.get(name) == facts.public_key
            )
            try:
                self.registry.standing(Peer(role=Role.SITE, name=name), facts)
                is_heard = True
            except FedfactoryError:
                is_heard = False
            assert is_heard == is_right


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestAnyOrder = AnyOrder.TestCase
