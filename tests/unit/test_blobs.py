"""The blob store: nothing half-written is ever taken for whole, and nobody's bytes are lost."""

import hashlib
import os
import stat
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.contracts.errors import IntegrityError, ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.gateway import arrivals
from fedfactory.coordinator.gateway.arrivals import KEPT_PER_PEER, KEPT_S, Arrivals
from fedfactory.coordinator.gateway.blobs import BlobStore
from fedfactory.coordinator.gateway.holds import Holds
from fedfactory.identity.roles import Peer, Role
from fedfactory.wire.rpc.arriving_blob import ArrivingBlob
from tests.patience import HANG_S


def ref_of(data):
    return BlobRef(digest="sha256:" + hashlib.sha256(data).hexdigest(), bytes=len(data))


def cut(data, size=1000):
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.fixture
def store(tmp_path):
    store = BlobStore(tmp_path / "blobs")
    yield store
    assert not list(store.root.glob(".*")), "something half-written was left behind"


DATA = os.urandom(10_000)
REF = ref_of(DATA)
CESGA = Peer(role=Role.SITE, name="cesga")
LUMI = Peer(role=Role.SITE, name="lumi")
DOTTED = Peer(role=Role.SITE, name="cesga.2")
ANA = Peer(role=Role.OPERATOR, name="cesga")


def staged(tmp_path, data=DATA):
    path = tmp_path / "staged"
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


class BrokenError(Exception):
    pass


def broken_after(pieces):
    yield from pieces
    raise BrokenError


# ---- uploads and claims ----------------------------------------------------------------------


@pytest.mark.rule("44")
def test_what_is_claimed_lies_under_its_digest_for_us_alone(store):
    store.receive(CESGA, REF, 0, map(memoryview, cut(DATA)))
    path = store.path(REF.digest)
    assert not path.exists()
    assert store.claim("run", "cesga", REF.digest)
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert stat.S_IMODE((store.root / "arriving").stat().st_mode) == 0o700
    assert store.claim("run", "cesga", REF.digest)  # asked twice, done once


@pytest.mark.parametrize(
    ("sent", "finding"),
    [
        (DATA[:-1], "9999 bytes arrived of 10000"),
        (DATA + b"x", "more than the 10000 bytes"),
        (DATA[:-1] + bytes([DATA[-1] ^ 1]), "another digest"),
        (b"", "0 bytes arrived"),
    ],
)
def test_other_bytes_than_announced_are_refused(store, sent, finding):
    with pytest.raises(IntegrityError, match=finding):
        store.receive(CESGA, REF, 0, cut(sent))
    # a stream that ends too soon may be a line that broke
    assert store.arrived(CESGA, REF) == (len(sent) if finding.startswith("9999") else 0)
    assert not store.claim("run", "cesga", REF.digest)
    assert not store.path(REF.digest).exists()


@given(
    cuts=st.lists(st.integers(0, 10_000), max_size=5),
    restarts=st.lists(st.booleans(), min_size=5, max_size=5),
)
@settings(max_examples=40)
def test_however_often_it_is_cut_each_byte_is_sent_once(tmp_path_factory, cuts, restarts):
    root = tmp_path_factory.mktemp("cuts") / "blobs"
    store, sent = BlobStore(root), 0
    for end, restart in zip(sorted(cuts), restarts, strict=False):
        offset = store.arrived(CESGA, REF)
        rest = DATA[offset:end]
        sent += len(rest)
        with pytest.raises(BrokenError):
            store.receive(CESGA, REF, offset, broken_after(cut(rest)))
        if restart:
            store = BlobStore(root)
    offset = store.arrived(CESGA, REF)
    store.receive(CESGA, REF, offset, cut(DATA[offset:]))
    assert sent + len(DATA) - offset == len(DATA)
    assert store.claim("run", "cesga", REF.digest)
    assert store.path(REF.digest).read_bytes() == DATA


def test_what_has_arrived_is_hashed_once(store, monkeypatch):
    read = []
    real = ArrivingBlob._take_up
    monkeypatch.setattr(ArrivingBlob, "_take_up", lambda blob: (read.append(blob), real(blob)))
    for end in (1000, 5000, 9000):
        offset = store.arrived(CESGA, REF)
        with pytest.raises(BrokenError):
            store.receive(CESGA, REF, offset, broken_after([DATA[offset:end]]))
    store.receive(CESGA, REF, 9000, [DATA[9000:]])
    assert store.claim("run", "cesga", REF.digest)
    assert len(read) == 1  # the empty file that it began with


def test_an_upload_is_its_uploaders_alone(store):
    store.receive(CESGA, REF, 0, cut(DATA))
    for other in (LUMI, DOTTED, ANA):
        assert store.arrived(other, REF) == 0
        assert store.find_upload(other, REF.digest) is None
    assert not store.claim("run", "lumi", REF.digest)
    store.receive(ANA, REF, 0, cut(DATA))
    assert store.find_upload(ANA, REF.digest).read_bytes() == DATA
    assert store.claim("run", "cesga", REF.digest)
    assert store.find_upload(ANA, REF.digest).read_bytes() == DATA


def test_uploads_are_bounded_in_number_and_age(store, tmp_path, monkeypatch):
    for number in range(10):
        data = bytes([number]) * 10
        store.receive(CESGA, ref_of(data), 0, [data])
        store.receive(DOTTED, ref_of(data), 0, [data])
    names = [path.name for path in (store.root / "arriving").iterdir()]
    assert len([name for name in names if name.startswith("site:cesga:")]) == KEPT_PER_PEER
    assert len(names) == 2 * KEPT_PER_PEER
    later = arrivals.time.time() + KEPT_S + 10
    monkeypatch.setattr(arrivals.time, "time", lambda: later)
    Arrivals(store.root / "arriving")
    assert not list((store.root / "arriving").iterdir())


@pytest.mark.parametrize("digest", ["", "sha256:", "../../x", "sha256:" + "A" * 64])
def test_no_name_leads_out_of_the_folder(store, digest):
    for call in (
        lambda: store.path(digest),
        lambda: store.claim("run", "cesga", digest),
        lambda: store.find_upload(ANA, digest),
        lambda: store.discard("run", digest),
    ):
        with pytest.raises(ProtocolError):
            call()


def test_an_update_may_be_claimed_for_two_runs(store):
    store.receive(CESGA, REF, 0, cut(DATA))
    assert store.claim("one", "cesga", REF.digest)
    assert store.claim("two", "cesga", REF.digest)
    assert store.discard("one", REF.digest)
    assert store.path(REF.digest).read_bytes() == DATA
    store.discard("two", REF.digest)
    assert not store.path(REF.digest).exists()
    assert not store.claim("two", "cesga", REF.digest)


def test_equal_bytes_of_the_next_round_are_not_given_up_with_those_of_the_last(store):
    store.receive(CESGA, REF, 0, cut(DATA))
    assert store.claim("run", "cesga", REF.digest)
    offset = store.arrived(CESGA, REF)  # a fast site: the run still holds the last round's
    store.receive(CESGA, REF, offset, cut(DATA[offset:]))
    store.discard("run", REF.digest)
    assert store.claim("run", "cesga", REF.digest)
    assert store.path(REF.digest).read_bytes() == DATA


@pytest.mark.parametrize("runs", [("run", "run"), ("one", "two")])
def test_equal_bytes_are_claimed_by_two_replies_at_once(store, monkeypatch, runs):
    """One site answers two orders with the same bytes: it sent them once, and both count."""
    store.receive(CESGA, REF, 0, cut(DATA))
    syncing, go_on = threading.Event(), threading.Event()
    sync = ArrivingBlob.sync

    def slow(blob):
        syncing.set()
        go_on.wait(HANG_S)
        sync(blob)

    monkeypatch.setattr(ArrivingBlob, "sync", slow)
    claims = []

    def claim(run):
        claims.append(store.claim(run, "cesga", REF.digest))

    threads = [threading.Thread(target=claim, args=(run,)) for run in runs]
    threads[0].start()
    assert syncing.wait(HANG_S)
    threads[1].start()
    threads[1].join(0.2)  # it waits for its turn
    go_on.set()
    for thread in threads:
        thread.join()
    assert claims == [True, True]
    store.discard(runs[0], REF.digest)
    assert store.path(REF.digest).read_bytes() == DATA
    store.discard(runs[1], REF.digest)
    assert not store.path(REF.digest).exists()


def test_two_claims_at_once_of_what_the_site_never_sent_do_not_bear_each_other_out(
    store, tmp_path, monkeypatch
):
    store.adopt("run", staged(tmp_path), REF)
    waiting, go_on, whole = threading.Event(), threading.Event(), Arrivals._is_whole

    def slow(self, path, digest):
        waiting.set()
        go_on.wait(HANG_S)
        return whole(self, path, digest)

    monkeypatch.setattr(Arrivals, "_is_whole", slow)
    claims = []
    threads = [
        threading.Thread(target=lambda: claims.append(store.claim("run", "cesga", REF.digest)))
        for _ in range(2)
    ]
    threads[0].start()
    assert waiting.wait(HANG_S)
    threads[1].start()
    threads[1].join(0.2)
    go_on.set()
    for thread in threads:
        thread.join()
    assert claims == [False, False]


# ---- models ----------------------------------------------------------------------------------


def test_a_model_is_linked_not_moved(store, tmp_path):
    path = staged(tmp_path)
    for _ in range(2):
        store.adopt("run", path, REF)
    assert path.samefile(store.path(REF.digest))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.discard("run", REF.digest)
    assert path.read_bytes() == DATA
    assert not store.path(REF.digest).exists()


def test_a_model_of_another_length_is_not_adopted(store, tmp_path):
    with pytest.raises(IntegrityError, match="9999 bytes long"):
        store.adopt("run", staged(tmp_path, DATA[:-1]), REF)


def test_adopting_replaces_a_file_that_was_torn(store, tmp_path):
    store.path(REF.digest).write_bytes(b"torn")
    store.adopt("run", staged(tmp_path), REF)
    assert store.path(REF.digest).read_bytes() == DATA


def test_a_site_that_sends_the_model_back_cannot_have_it_thrown_away(store, tmp_path):
    store.adopt("run", staged(tmp_path), REF)
    store.receive(CESGA, REF, 0, cut(DATA))
    assert store.claim("run", "cesga", REF.digest)
    assert not store.discard("run", REF.digest)  # the claim
    assert store.path(REF.digest).read_bytes() == DATA
    assert store.discard("run", REF.digest)
    assert not store.path(REF.digest).exists()


def test_two_runs_may_begin_with_the_same_model(store, tmp_path):
    for run in ("one", "two"):
        store.adopt(run, staged(tmp_path), REF)
    assert store.discard("one", REF.digest)
    assert store.path(REF.digest).read_bytes() == DATA
    assert store.discard("two", REF.digest)
    assert not store.path(REF.digest).exists()


# ---- restarts --------------------------------------------------------------------------------


def test_a_restart_keeps_what_runs_hold_and_sweeps_the_rest(store, tmp_path):
    update, other = DATA[:5000], DATA[:6000]
    for data in (update, other):
        store.receive(CESGA, ref_of(data), 0, [data])
        assert store.claim("run", "cesga", ref_of(data).digest)
    store.adopt("run", staged(tmp_path), REF)
    (store.root / ".7.part").write_bytes(b"a crash left it")

    again = BlobStore(store.root)
    assert again.path(REF.digest).exists()
    again.restore("run", [("cesga", ref_of(update).digest)], [])
    again.sweep()
    assert [path.name for path in again.root.iterdir() if path.is_file()] == [
        ref_of(update).digest.removeprefix("sha256:")
    ]
    assert again.claim("run", "cesga", ref_of(update).digest)
    again.forget("run")
    assert not again.path(ref_of(update).digest).exists()


def test_what_arrived_whole_before_a_crash_can_be_claimed_after_it(store):
    store.receive(CESGA, REF, 0, cut(DATA))
    again = BlobStore(store.root)
    again.restore("run", [("cesga", REF.digest), ("lumi", ref_of(b"gone").digest)], [])
    assert again.path(REF.digest).read_bytes() == DATA
    again.sweep()
    assert again.path(REF.digest).read_bytes() == DATA


def test_a_file_torn_by_a_crash_is_never_claimed(store):
    store.receive(CESGA, REF, 0, cut(DATA))
    (file,) = (store.root / "arriving").iterdir()
    file.write_bytes(bytes(len(DATA)))
    again = BlobStore(store.root)
    assert not again.claim("run", "cesga", REF.digest)
    with pytest.raises(IntegrityError):
        again.receive(CESGA, REF, again.arrived(CESGA, REF), [])
    assert again.arrived(CESGA, REF) == 0
    again.receive(CESGA, REF, 0, cut(DATA))
    assert again.claim("run", "cesga", REF.digest)


def test_restoring_gives_up_what_a_run_no_longer_names(store):
    for data in (DATA[:10], DATA[:20]):
        store.receive(CESGA, ref_of(data), 0, [data])
        assert store.claim("run", "cesga", ref_of(data).digest)
    store.restore("run", [("cesga", ref_of(DATA[:20]).digest)], [])
    assert not store.path(ref_of(DATA[:10]).digest).exists()
    assert store.path(ref_of(DATA[:20]).digest).exists()


# ---- who holds what --------------------------------------------------------------------------

RUNS, SITES, DIGESTS = ("r1", "r2"), ("a", "b"), ("x", "y")
STEP = st.one_of(
    st.tuples(st.just("adopt"), st.sampled_from(RUNS), st.sampled_from(DIGESTS)),
    st.tuples(
        st.just("claim"), st.sampled_from(RUNS), st.sampled_from(SITES), st.sampled_from(DIGESTS)
    ),
    st.tuples(st.just("release"), st.sampled_from(RUNS), st.sampled_from(DIGESTS)),
    st.tuples(st.just("forget"), st.sampled_from(RUNS)),
)


@given(st.lists(STEP, max_size=30))
def test_a_blob_stays_as_long_as_anybody_holds_it(steps):
    """Against a plain model: who holds each blob, a site once for each update that was claimed."""
    holds, model = Holds(), []
    for kind, run, *rest in steps:
        if kind == "adopt":
            holds.adopt(run, rest[0])
            model = [*(m for m in model if m != (run, "", rest[0])), (run, "", rest[0])]
        elif kind == "claim":
            holds.claim(run, *rest)
            model.append((run, *rest))
        elif kind == "release":
            mine = sorted(m for m in model if (m[0], m[2]) == (run, rest[0]))
            for gone in mine[1:2] if mine and not mine[0][1] and len(mine) > 1 else mine[:1]:
                model.remove(gone)
            assert holds.release(run, rest[0]) == all(m[2] != rest[0] for m in model)
        else:
            gone = holds.restore(run, (), ())
            before = {m[2] for m in model if m[0] == run}
            model = [m for m in model if m[0] != run]
            assert gone == {d for d in before if all(m[2] != d for m in model)}
        for digest in DIGESTS:
            assert holds.is_held(digest) == any(m[2] == digest for m in model)
            for run_ in RUNS:
                assert holds.holds(run_, digest) == any(
                    (m[0], m[2]) == (run_, digest) for m in model
                )
            for site in SITES:
                assert holds.claimed(site, digest) == any(
                    (m[1], m[2]) == (site, digest) for m in model
                )
