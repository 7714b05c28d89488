"""Images and a site's own Python class: labels, units, sizes, versions; the record of a version."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.table import load_task
from site_agents.data.sources import open_source
from site_agents.data.versions import Version, compare, read_version, write_version

MLP = {"model": "mlp"}


def load(options: dict[str, Any]) -> Any:
    return open_source("mine", options, "lineage").load(load_task("digits"), MLP)


def test_images_are_brought_into_one_form(tmp_path: Path) -> None:
    """Another size, colour and palette; a pixel of 255 is 1."""
    for i in range(40):
        folder = tmp_path / ("one" if i % 2 else "7")
        folder.mkdir(exist_ok=True)
        image = Image.new("RGB", (20, 10), (255, 255, 255) if i % 2 else (0, 0, 0))
        (image if i % 4 else image.convert("P")).save(folder / f"{i}.png")
    (tmp_path / "one" / ".DS_Store").write_text("x")
    data = load({"kind": "images", "path": str(tmp_path), "size": [8, 8], "labels": {"one": 1}})
    for part in (data.train, data.test):
        assert part.unit is None
        assert set(part.y.tolist()) <= {1, 7}
        assert np.array_equal(part.x, np.where(part.y == 1, 1, 0)[:, None] * np.ones((1, 64)))


def test_images_by_the_unit_in_their_names(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    for i in range(120):
        folder = tmp_path / str(i % 3)
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(0, 255, (8, 8)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"patient{i // 4}_{i}.png")
    options = {"kind": "images", "path": str(tmp_path), "size": [8, 8], "unit": "([^_]+)_"}
    data = load(options)
    counts = [np.unique(p.unit, return_counts=True)[1] for p in (data.train, data.test)]
    assert sum(map(len, counts)) == 30
    assert set(np.concatenate(counts)) == {4}  # across the folders of three classes
    with pytest.raises(DataError, match=r"patient0_0\.png: its name does not begin"):
        load({**options, "unit": "p([0-9]+)_"})


LAB = """
import torch

class Scans(torch.utils.data.Dataset):
    version = "1"
    def __init__(self, count=60):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, i):
        assert 0 <= i < self.count
        return torch.full((64,), i / 100), torch.tensor(i % 2), f"p{i // 3}"

class Named(Scans):
    def __getitem__(self, i):
        raise AssertionError("its version needs no record")
    def fingerprint(self):
        return self.version
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "scans_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "scans_lab", raising=False)
    import scans_lab

    return scans_lab


@pytest.mark.usefixtures("lab")
def test_a_torch_dataset_with_units() -> None:
    options = {"kind": "python", "target": "scans_lab:Scans"}
    data = load(options)
    assert len(data.train) + len(data.test) == 60
    assert sum(len(np.unique(part.unit)) for part in (data.train, data.test)) == 20
    assert set(np.concatenate([data.train.y, data.test.y])) == {0, 1}
    mapped = load({**options, "arguments": {"count": 90}, "labels": {0: "3", 1: "4"}})
    assert set(np.concatenate([mapped.train.y, mapped.test.y])) == {3, 4}


def test_a_version_of_its_own_word(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("mine", {"kind": "python", "target": "scans_lab:Named"}, "lineage")
    first = source.version()
    assert source.version() == first
    monkeypatch.setattr(lab.Named, "version", "2")
    assert source.version() != first


def test_the_record_of_a_version(tmp_path: Path) -> None:
    version = Version(fingerprint="sha256:00", bytes=7, files=1)
    assert read_version(tmp_path, "mine") is None
    write_version(tmp_path, "mine", version)
    assert read_version(tmp_path, "mine") == version
    path = tmp_path / "data" / "mine.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("{")
    with pytest.raises(DataError, match=r"mine\.json: not a record.*delete it"):
        read_version(tmp_path, "mine")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_version(tmp_path / "file", "mine", version)


def test_only_data_that_grew_is_asked_whether_it_was_appended_to() -> None:
    small, large = (Version(fingerprint=f"sha256:{n}", bytes=n, files=1) for n in (3, 9))

    def never(earlier: Version) -> bool:
        raise AssertionError(earlier)

    assert compare("x", None, small, never).kind == "first seen"
    assert compare("x", small, small, never).kind == "unchanged"
    assert compare("x", large, small, never).kind == "changed"
    assert compare("x", small, large, lambda _: True).kind == "appended"
    assert compare("x", small, large, lambda _: False).kind == "changed"
