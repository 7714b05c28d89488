"""The folder of a run's models and strategy states: files named by their digest, durable or absent.

One writer, the run's process. A file is written in a folder beside, synced, renamed, and its name
synced, before the journal speaks of it; so every file that the journal names was whole once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.gateway.blobs import blob_path
from fedfactory.durable_file import sync_folder

MODELS: Final = "models"
_NEW: Final = ".new"
_READ_BYTES: Final = 1 << 20


class Checkpoints:
    """A run's models and states. Opening it drops what was left half-written (0700, files 0600)."""

    def __init__(self, run_folder: Path) -> None:
        self._root = run_folder / MODELS
        self.workplace = self._root / _NEW
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self.workplace, ignore_errors=True)
        self.workplace.mkdir(mode=0o700)

    def path(self, ref: BlobRef) -> Path:
        """Return where the file of that reference lies, or would lie."""
        return blob_path(self._root, ref.digest)

    def new(self, ref: BlobRef) -> Path:
        """Return where a new file named by its digest lies in `workplace`."""
        return blob_path(self.workplace, ref.digest)

    def keep(self, new: Path, ref: BlobRef) -> Path:
        """Make a file of `workplace` durable under its digest; return its path. Raises OSError."""
        new.chmod(0o600)
        handle = os.open(new, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        new.replace(self.path(ref))
        sync_folder(self._root)
        return self.path(ref)

    def fault(self, ref: BlobRef) -> str | None:
        """Return what is wrong with a kept file, None if it is whole."""
        return file_fault(self.path(ref), ref)

    def sweep(self, needed: set[BlobRef]) -> None:
        """Delete files that nobody needs: left by a crash before they were journalled, or after."""
        names = {self.path(ref).name for ref in needed}
        for path in self._root.iterdir():
            if path.is_file() and path.name not in names:
                path.unlink()

    def drop(self, refs: Iterable[BlobRef]) -> None:
        """Delete files that are no longer kept; one that is gone already is no fault."""
        for ref in refs:
            self.path(ref).unlink(missing_ok=True)


def file_fault(path: Path, ref: BlobRef) -> str | None:
    """Return in a few words why `path` does not hold the bytes of `ref`; None if it does."""
    digest = hashlib.sha256()
    try:
        if (length := path.stat().st_size) != ref.bytes:
            return f"{length} bytes long, expected {ref.bytes}"
        with path.open("rb", 0) as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable ({error.strerror})"
    return None if f"sha256:{digest.hexdigest()}" == ref.digest else "damaged: another digest"
