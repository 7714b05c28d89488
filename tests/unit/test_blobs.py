"""The blob store: nothing half-written is ever taken for whole, and nobody's bytes are lost."""

import hashlib
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfactory.contracts.errors import IntegrityError, ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.blobs import BlobStore
from fedfactory.coordinator.holds import UNCLAIMED_PER_SITE, Holds


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


def test_what_is_received_lies_under_its_digest_for_us_alone(store):
    store.receive("cesga", REF, map(memoryview, cut(DATA)))
    path = store.path(REF.digest)
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700


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
        store.receive("cesga", REF, cut(sent))
    assert not store.path(REF.digest).exists()
    assert not store.claim("cesga", REF.digest)


def test_a_broken_stream_leaves_nothing(store):
    def broken():
        yield DATA[:100]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        store.receive("cesga", REF, broken())
    assert not list(store.root.iterdir())


def test_opening_drops_what_a_crash_left(tmp_path):
    store = BlobStore(tmp_path)
    store.receive("cesga", REF, [DATA])
    (tmp_path / ".7.part").write_bytes(b"half")
    again = BlobStore(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [REF.digest.removeprefix("sha256:")]
    assert again.path(REF.digest).exists()


def test_adopting_moves_the_file(store, tmp_path):
    source = tmp_path / "round-1.safetensors"
    source.write_bytes(DATA)
    store.adopt(source, REF)
    assert not source.exists()
    assert store.path(REF.digest).read_bytes() == DATA
    source.write_bytes(b"short")
    with pytest.raises(IntegrityError, match="5 bytes long, expected 10000"):
        store.adopt(source, REF)


@pytest.mark.parametrize("digest", ["../../etc/passwd", "sha256:..", "sha256:" + "A" * 64, ""])
def test_a_path_is_only_ever_made_of_a_digest(store, digest):
    with pytest.raises(ProtocolError):
        store.path(digest)


def test_a_site_cannot_have_the_base_model_thrown_away(store, tmp_path):
    source = tmp_path / "base"
    source.write_bytes(DATA)
    store.adopt(source, REF)
    store.receive("hostile", REF, [DATA])
    assert not store.discard(REF.digest)  # the ServerApp refuses the update
    assert store.path(REF.digest).exists()
    assert store.discard(REF.digest)
    assert not store.path(REF.digest).exists()


def test_uploads_nobody_claimed_do_not_pile_up(store):
    claimed = ref_of(b"claimed")
    store.receive("cesga", claimed, [b"claimed"])
    assert store.claim("cesga", claimed.digest)
    refs = [ref_of(bytes([i])) for i in range(10)]
    for i, ref in enumerate(refs):
        store.receive("cesga", ref, [bytes([i])])
    assert [store.path(ref.digest).exists() for ref in refs] == [False] * 6 + [
        True
    ] * UNCLAIMED_PER_SITE
    assert store.path(claimed.digest).exists()


def test_a_site_can_claim_only_what_it_sent(store):
    store.receive("cesga", REF, [DATA])
    assert not store.claim("lumi", REF.digest)
    assert store.claim("cesga", REF.digest)
    assert store.claim("cesga", REF.digest)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["adopt", "upload", "claim", "release"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["d1", "d2", "d3"]),
    ),
    max_size=30,
)


@given(STEPS)
def test_a_blob_goes_exactly_when_its_last_holder_lets_go(steps):
    """Against a plain model: digest -> sites and whether each claimed (too few to overflow)."""
    holds = Holds()
    own = set()
    uploads = {"d1": {}, "d2": {}, "d3": {}}
    for step, site, digest in steps:
        sites = uploads[digest]
        match step:
            case "adopt":
                holds.adopt(digest)
                own.add(digest)
            case "upload":
                assert holds.upload(site, digest) == []
                sites.setdefault(site, False)
            case "claim":
                assert holds.claim(site, digest) == (site in sites)
                if site in sites:
                    sites[site] = True
            case "release":
                gone = holds.release(digest)
                if sites:  # claimed ones first, then by name
                    del sites[min(sites, key=lambda name: (not sites[name], name))]
                else:
                    own.discard(digest)
                assert gone == (not sites and digest not in own)
