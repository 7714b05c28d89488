"""Base models at the site: each distinct array set is fetched once; the newest few are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from fedfactory.contracts.model import BlobRef, check_digest
from site_agents.gateway_client import GatewayClient

KEEP: Final = 2


class BlobCache:
    """A folder of blobs by digest."""

    def __init__(self, folder: Path, gateway: GatewayClient) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._gateway = gateway

    def fetch(self, ref: BlobRef) -> Path:
        """Return the file of a blob, fetched if it is not here."""
        path = self._folder / check_digest(ref.digest).removeprefix("sha256:")
        if path.exists():
            os.utime(path)
        else:
            self._gateway.download(ref, path)
        self._prune()
        return path

    def _prune(self) -> None:
        files = [p for p in self._folder.iterdir() if not p.name.startswith(".")]
        for old in sorted(files, key=lambda p: p.stat().st_mtime)[:-KEEP]:
            old.unlink()
