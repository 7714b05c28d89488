"""What the journal names is on disk before it: an update's bytes and its name, a model's too."""

import os
from pathlib import Path

from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.gateway.blobs import BlobStore
from fedfactory.coordinator.running.journal import Journal
from fedfactory.identity.roles import Peer, Role
from fedfactory.rounds.events import ModelAggregated, ReplyAccepted
from tests.contract.runner_rig import SITES, Coordinator, ref_of


class Disk:
    """Notes what is synced (files and folders by path) and renamed until each journal write."""

    def __init__(self, monkeypatch):
        self.synced, self.writes = [], []
        sync, replace, append = os.fsync, Path.replace, Journal.append

        def fsync(handle):
            sync(handle)
            number = handle if isinstance(handle, int) else handle.fileno()
            self.synced.append(Path(os.readlink(f"/proc/self/fd/{number}")))

        def renamed(path, target):
            moved = replace(path, target)
            self.synced.append((path, Path(target)))
            return moved

        def appended(journal, events):
            self.writes.append((list(events), self.synced))
            self.synced = []
            append(journal, events)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", renamed)
        monkeypatch.setattr(Journal, "append", appended)


def is_durable(target, synced):
    """Whether a file's bytes were synced, then it was renamed to `target`, then its folder."""
    (at,) = [n for n, deed in enumerate(synced) if isinstance(deed, tuple) and deed[1] == target]
    source, _ = synced[at]
    return source in synced[:at] and target.parent in synced[at:]


def test_updates_and_models_are_durable_before_the_journal_names_them(tmp_path, monkeypatch):
    coordinator = Coordinator(tmp_path / "hub", rounds=2)
    disk = Disk(monkeypatch)
    coordinator.run()
    named = 0
    synced = []  # since the writes that named nothing
    for events, deeds in disk.writes:
        synced += deeds
        for event in events:
            if isinstance(event, ReplyAccepted) and event.update.payload is not None:
                path = coordinator.store.path(event.update.payload.blob.digest)
            elif isinstance(event, ModelAggregated):
                path = coordinator.model_path(event.model.digest)
            else:
                continue
            assert is_durable(path, synced), event
            named += 1
    assert named == 2 * (len(SITES) + 1)


def test_the_folder_of_updates_is_synced_once_for_all_that_a_write_names(tmp_path, monkeypatch):
    coordinator = Coordinator(tmp_path / "hub", rounds=2, checkpoints=2)
    disk = Disk(monkeypatch)
    coordinator.run()
    synced = [deeds.count(coordinator.store.root) for _, deeds in disk.writes]
    accepted = [
        any(isinstance(event, ReplyAccepted) and event.update.payload for event in events)
        for events, _ in disk.writes
    ]
    assert synced == [int(found) for found in accepted]


def test_a_claim_whose_name_a_crash_took_away_is_found_where_it_arrived(tmp_path):
    data = b"an update"
    (tmp_path / "data").write_bytes(data)
    ref: BlobRef = ref_of(tmp_path / "data")
    store, peer = BlobStore(tmp_path / "blobs"), Peer(role=Role.SITE, name="lumi")
    store.receive(peer, ref, 0, [data])
    arrived = store.find_upload(peer, ref.digest)
    assert store.claim("run", "lumi", ref.digest)
    store.path(ref.digest).rename(arrived)  # as a power failure leaves it
    again = BlobStore(tmp_path / "blobs")
    again.restore("run", [("lumi", ref.digest)], [])
    assert again.path(ref.digest).read_bytes() == data
