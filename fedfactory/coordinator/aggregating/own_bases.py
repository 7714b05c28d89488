"""Models that one site alone starts from, where a strategy gives each site its own."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path

from flwr.app import ArrayRecord

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKind
from fedfactory.coordinator.aggregating.flower_records import write_model


class OwnBases:
    """Writes them into a temporary folder, which goes when this does; keeps those of training."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._kept: dict[str, Path] = {}

    def write(
        self, kind: WorkKind, site: str, arrays: ArrayRecord, model_path: Path
    ) -> tuple[BlobRef, Path]:
        """Write a site's base, in the form of the model at `model_path`; the file is the caller's.

        Raises:
            AggregationError: the arrays are not those of the model.
        """
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="fedfactory-bases-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{kind}-{site}.safetensors"
        ref = write_model(path, arrays, model_path)
        kept = path.with_suffix(".kept")  # the caller takes `path` away; deltas need it again
        kept.unlink(missing_ok=True)
        os.link(path, kept)
        if kind == "train":
            self._kept[site] = kept
        return ref, path

    def of(self, site: str, shared: Path) -> Path:
        """Return what a site trained from: its own base, or else the `shared` model."""
        return self._kept.get(site, shared)

    def clear(self) -> None:
        """Forget the bases of the round before."""
        self._kept.clear()
