"""Base models at the site, each fetched once; those in use and the newest few are kept."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from fedfactory.contracts.model import BlobRef

KEEP: Final = 2


class Gateway(Protocol):
    """What is needed of the gateway."""

    def download(self, ref: BlobRef, into: Path) -> None:
        """Fetch a blob to `into`, whole; see GatewayClient."""


class BlobCache:
    """A folder (0700) of blobs by digest, filled through the gateway."""

    def __init__(self, folder: Path, gateway: Gateway) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._gateway = gateway
        self._verified: set[str] = set()
        self._in_use: Counter[Path] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def fetch(self, ref: BlobRef) -> Iterator[Path]:
        """Yield the file of a blob, fetched if it is not here; it stays as long as it is in use.

        Raises what GatewayClient.download raises.
        """
        path = self._folder / ref.digest.removeprefix("sha256:")
        with self._lock:
            if self._is_here(path, ref):
                os.utime(path)
            else:
                self._gateway.download(ref, path)
            self._verified.add(ref.digest)
            self._in_use[path] += 1
            self._prune(path)
        try:
            yield path
        finally:
            with self._lock:
                self._in_use[path] -= 1

    def _is_here(self, path: Path, ref: BlobRef) -> bool:
        """Whether the file is there; one left by an earlier process is hashed before it counts."""
        if not path.exists():
            return False
        from fedfactory.wire.arrays import file_ref  # NumPy comes with it: once there is work

        return ref.digest in self._verified or file_ref(path) == ref

    def _prune(self, current: Path) -> None:
        """Keep the newest files, `current` among them; drop cut transfers nobody will resume."""
        files = [path for path in self._folder.iterdir() if path != current]
        whole = [path for path in files if not path.name.startswith(".")]
        newest_first = sorted(whole, key=lambda path: path.stat().st_mtime_ns, reverse=True)
        cut = [path for path in files if path.name.startswith(".")]
        for path in [*newest_first[KEEP - 1 :], *cut]:
            if not self._in_use[path]:
                path.unlink()
        self._in_use += Counter()  # keeps those above zero
