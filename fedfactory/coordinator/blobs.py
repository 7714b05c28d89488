"""Arrays at the coordinator: files named by their SHA-256, in one folder, with one writer.

A blob appears under its name only when its length and digest are verified, by rename. Files are not
synced to disk: after a power cut the run's round is asked for again, and a torn file fails its digest.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from fedfactory.contracts.errors import IntegrityError
from fedfactory.contracts.model import BlobRef, check_digest


class BlobStore:
    """The folder of blobs (0700, files 0600). Opening it drops what was left half-written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for partial in root.glob(".*.part"):
            partial.unlink()
        self._serial = 0
        self._lock = threading.Lock()

    def path(self, digest: str) -> Path:
        """Return where the blob of that digest lies, or would lie."""
        return blob_path(self.root, digest)

    def has(self, digest: str) -> bool:
        """Whether the blob is here, whole."""
        return self.path(digest).exists()

    def receive(self, ref: BlobRef, pieces: Iterable[bytes]) -> None:
        """Store a stream of bytes as the blob `ref`.

        Raises:
            IntegrityError: too long, too short, or another digest; nothing is left behind.
        """
        with self._lock:
            self._serial += 1
            partial = self.root / f".{self._serial}.part"
        try:
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                _copy_checked(ref, pieces, file)
            partial.replace(self.path(ref.digest))
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def adopt(self, path: Path, ref: BlobRef) -> None:
        """Take over a file written on this file system by the ServerApp, which named its digest."""
        if path.stat().st_size != ref.bytes:
            raise IntegrityError(f"{path.name} is not {ref.bytes} bytes long")
        path.chmod(0o600)
        path.replace(self.path(ref.digest))

    def discard(self, digest: str) -> None:
        """Forget a blob."""
        self.path(digest).unlink(missing_ok=True)


def blob_path(root: Path, digest: str) -> Path:
    """Return the path of a blob under a store's folder."""
    return root / check_digest(digest).removeprefix("sha256:")


def _copy_checked(ref: BlobRef, pieces: Iterable[bytes], file: object) -> None:
    write = file.write  # type: ignore[attr-defined]
    digest = hashlib.sha256()
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > ref.bytes:
            raise IntegrityError(f"more than the {ref.bytes} bytes announced")
        digest.update(piece)
        write(piece)
    if length != ref.bytes:
        raise IntegrityError(f"{length} bytes arrived of {ref.bytes} announced")
    if "sha256:" + digest.hexdigest() != ref.digest:
        raise IntegrityError("the bytes have another digest than announced")
