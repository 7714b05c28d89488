"""Arrays at the coordinator: files named by their SHA-256, in one folder, with one writer.

ROOT/<hex> are the blobs that runs hold: updates that were claimed, durably, and models to be
served. ROOT/arriving holds uploads until they are claimed. Opening a store keeps the files; each
run says what it still holds (`restore`), and `sweep` drops what nobody does.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import IntegrityError
from fedfactory.contracts.model import BlobRef, check_digest
from fedfactory.coordinator.gateway.arrivals import Arrivals
from fedfactory.coordinator.gateway.holds import Holds
from fedfactory.identity.roles import Peer, Role

_ARRIVING: Final = "arriving"


class BlobStore:
    """The folder of blobs (0700, files 0600). Usable from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        for partial in root.glob(".*.part"):
            partial.unlink()
        self._arrivals = Arrivals(root / _ARRIVING)
        self._holds = Holds()
        self._serial = 0
        self._lock = threading.Lock()  # a name and its holds change together

    def path(self, digest: str) -> Path:
        """Return where the blob of that digest lies, or would lie."""
        return blob_path(self.root, digest)

    # ---- what members upload ---------------------------------------------------------------

    def arrived(self, peer: Peer, ref: BlobRef) -> int:
        """Return how many bytes of a blob this member has sent that no run has claimed yet.

        A claimed upload is not counted: its run may give it up before the next claim, as a run does
        with the update of the last round when a site sends equal bytes in this one.
        """
        return self._arrivals.length(peer, ref)

    def receive(
        self, peer: Peer, ref: BlobRef, offset: int, pieces: Iterable[bytes | memoryview]
    ) -> None:
        """Take a member's upload of `ref` from `offset` on; see Arrivals.receive."""
        self._arrivals.receive(peer, ref, offset, pieces)

    def find_upload(self, peer: Peer, digest: str) -> Path | None:
        """Return where a member's whole upload lies, to be read until the member sends more.

        To keep it, take it: its uploader may still write to the file that lies there.
        """
        return self._arrivals.find(peer, digest)

    def take_upload(self, peer: Peer, digest: str, into: Path) -> bool:
        """Move a member's whole upload to `into`, durably but for the name; False if there is none.

        Nothing that the member sends later reaches it there.
        """
        return self._arrivals.take(peer, digest, into)

    # ---- what runs hold --------------------------------------------------------------------

    def claim(self, run: str, site: str, digest: str) -> bool:
        """Hold a site's upload for a run; False if the site has sent no such blob.

        What is held of this site already counts as sent: one reply may come twice. The bytes are on
        disk then. The name is once the folder is synced, which the run's process does before its
        journal speaks of it: once for many. Until then a crash may leave the file where it arrived,
        and `restore` finds it there.
        """

        def hold() -> bool:
            with self._lock:
                held = self._holds.claimed(site, digest) and path.exists()
                self._holds.claim(run, site, digest)  # before its file is there, so that it stays
            return held

        # In turn with other claims of the same bytes: two replies may come at once.
        path, taken = self.path(digest), False
        try:
            taken = self._arrivals.take(_site(site), digest, path, hold)
        finally:
            if not taken:
                with self._lock:
                    self._holds.unclaim(run, site, digest)
        return taken

    def unclaim(self, run: str, site: str, digest: str) -> None:
        """Give up one claim of a site's for a run that did not hear of it."""
        with self._lock:
            self._holds.unclaim(run, site, digest)
            if not self._holds.is_held(digest):
                self.path(digest).unlink(missing_ok=True)

    def adopt(self, run: str, path: Path, ref: BlobRef) -> None:
        """Serve a file of a run's own by a hard link to it; its digest is taken on trust.

        Raises:
            IntegrityError: the file has another length.
        """
        if (length := path.stat().st_size) != ref.bytes:
            raise IntegrityError(f"{path.name} is {length} bytes long, expected {ref.bytes}")
        path.chmod(0o600)
        with self._lock:
            self._serial += 1
            link = self.root / f".{self._serial}.part"
            os.link(path, link)
            link.replace(self.path(ref.digest))
            link.unlink(missing_ok=True)  # rename does nothing where both are one file already
            self._holds.adopt(run, ref.digest)

    def restore(self, run: str, claims: Iterable[tuple[str, str]], own: Iterable[str]) -> None:
        """Let a run hold again what its journal says, and nothing else: (site, digest), digests.

        An update that arrived whole and was not claimed before a crash is claimed now.
        """
        claims = list(claims)
        for site, digest in claims:
            if not self.path(digest).exists():
                self.claim(run, site, digest)
        with self._lock:
            found = [claim for claim in claims if self.path(claim[1]).exists()]
            for digest in self._holds.restore(run, found, own):
                self.path(digest).unlink(missing_ok=True)

    def forget(self, run: str) -> None:
        """Give up all that a run holds: it is over."""
        self.restore(run, (), ())

    def discard(self, run: str, digest: str) -> bool:
        """Give up one hold of a run, a site's before its own; True if the run has none left."""
        with self._lock:
            if self._holds.release(run, digest):
                self.path(digest).unlink(missing_ok=True)
            return not self._holds.holds(run, digest)

    def sweep(self) -> None:
        """Drop what nobody holds, and uploads of long ago."""
        self._arrivals.drop_old(time.time())
        with self._lock:
            for path in self.root.iterdir():
                if path.is_file() and not self._holds.is_held(f"sha256:{path.name}"):
                    with contextlib.suppress(FileNotFoundError):
                        path.unlink()


def blob_path(root: Path, digest: str) -> Path:
    """Return the path of a blob under a store's folder."""
    return root / check_digest(digest).removeprefix("sha256:")


def _site(name: str) -> Peer:
    return Peer(role=Role.SITE, name=name)
