"""Arrays at the coordinator: files named by their SHA-256, in one folder, with one writer.

A blob appears under its name only when its length and digest are verified, by rename. Files are
not synced to disk: a power cut loses at most the round under way, which is then asked for again,
and a file that it tore fails its digest at the site that downloads it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from fedfactory.contracts.errors import IntegrityError
from fedfactory.contracts.model import BlobRef, check_digest
from fedfactory.coordinator.holds import Holds


class BlobStore:
    """The folder of blobs (0700, files 0600). Opening it drops what was left half-written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        for partial in root.glob(".*.part"):
            partial.unlink()
        self._serial = 0
        self._holds = Holds()
        self._lock = threading.Lock()  # a name and its holds change together

    def path(self, digest: str) -> Path:
        """Return where the blob of that digest lies, or would lie."""
        return blob_path(self.root, digest)

    def receive(self, site: str, ref: BlobRef, pieces: Iterable[bytes | memoryview]) -> None:
        """Store a stream of bytes as the blob `ref`, uploaded by `site`.

        Of uploads that were never claimed the site's newest few are kept.

        Raises:
            IntegrityError: too long, too short, or another digest; nothing is left behind.
        """
        with self._lock:
            self._serial += 1
            partial = self.root / f".{self._serial}.part"
        try:
            _write_checked(partial, ref, pieces)
            with self._lock:
                partial.replace(self.path(ref.digest))
                for digest in self._holds.upload(site, ref.digest):
                    self.path(digest).unlink(missing_ok=True)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def claim(self, site: str, digest: str) -> bool:
        """Keep a site's upload until it is discarded; False if the site has sent no such blob."""
        with self._lock:
            return self._holds.claim(site, digest)

    def adopt(self, path: Path, ref: BlobRef) -> None:
        """Take over a file of the ServerApp's, on this file system; its digest is taken on trust.

        Raises:
            IntegrityError: the file has another length.
        """
        if (length := path.stat().st_size) != ref.bytes:
            raise IntegrityError(f"{path.name} is {length} bytes long, expected {ref.bytes}")
        path.chmod(0o600)
        with self._lock:
            path.replace(self.path(ref.digest))
            self._holds.adopt(ref.digest)

    def discard(self, digest: str) -> bool:
        """Give up one hold on a blob, a site's before our own; True if the blob is gone."""
        with self._lock:
            gone = self._holds.release(digest)
            if gone:
                self.path(digest).unlink(missing_ok=True)
            return gone


def blob_path(root: Path, digest: str) -> Path:
    """Return the path of a blob under a store's folder."""
    return root / check_digest(digest).removeprefix("sha256:")


def _write_checked(path: Path, ref: BlobRef, pieces: Iterable[bytes | memoryview]) -> None:
    digest = hashlib.sha256()
    length = 0
    path.touch(mode=0o600)
    with path.open("wb", 0) as file:
        for piece in pieces:
            length += len(piece)
            if length > ref.bytes:
                raise IntegrityError(f"more than the {ref.bytes} bytes announced")
            _write_all(file.fileno(), piece)
            digest.update(piece)
    if length != ref.bytes:
        raise IntegrityError(f"{length} bytes arrived of {ref.bytes} announced")
    if "sha256:" + digest.hexdigest() != ref.digest:
        raise IntegrityError("the bytes have another digest than announced")


def _write_all(handle: int, piece: bytes | memoryview) -> None:
    """Write a piece whole: an unbuffered write may take less (a signal, a disk nearly full)."""
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(handle, rest) :]
