"""Every kind of data source keeps the contract."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv, parquet

from fedfactory.choices import values_of
from fedfactory.testing.sources import SourceCase, SourceContract
from site_agents.data.generation import generate, write_table

RECORDS = 400
TABULAR = {k: v for k, v in values_of("task", "tabular").items() if k not in ("name", "data")}
DIGITS = {"model": "mlp"}
DATASET = """
import numpy as np

class Records:
    def __init__(self, path):
        with np.load(path) as file:
            self.x, self.y = file["x"], file["y"]
    def __len__(self):
        return len(self.y)
    def __getitem__(self, i):
        return self.x[i], self.y[i]
"""


def table(count: int, seed: int = 1) -> Any:
    return generate("tabular", TABULAR, count, seed)


class TestCsv(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> SourceCase:
        path = tmp_path / "own.csv"
        write_table(table(RECORDS), path)

        def append() -> None:
            with path.open("ab") as file:
                csv.write_csv(table(50, 2), file, csv.WriteOptions(include_header=False))

        def spoil(marker: str) -> None:
            lines = path.read_text().splitlines()
            lines[7] = ",".join([marker, *lines[7].split(",")[1:]])
            path.write_text("\n".join(lines))

        return SourceCase(
            options={"kind": "csv", "path": str(path)},
            task="tabular",
            parameters=TABULAR,
            records=RECORDS,
            root=tmp_path,
            append=append,
            spoil=spoil,
            lose=path.unlink,
            missing=str(path),
        )


class TestParquet(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> SourceCase:
        path = tmp_path / "own.parquet"
        whole = table(RECORDS)
        write_table(whole, path)

        def spoil(marker: str) -> None:
            cells = whole.column("sex").to_pylist()
            cells[7] = marker
            place = whole.column_names.index("sex")
            parquet.write_table(whole.set_column(place, "sex", pa.array(cells)), path)

        return SourceCase(
            options={"kind": "parquet", "path": str(path)},
            task="tabular",
            parameters=TABULAR,
            records=RECORDS,
            root=tmp_path,
            append=lambda: parquet.write_table(pa.concat_tables([whole, table(50, 2)]), path),
            spoil=spoil,
            lose=path.unlink,
            missing=str(path),
        )


def _arrays(count: int, seed: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    x = generator.random((count, 64)).astype(np.float32)
    return x, generator.integers(0, 10, count)


class TestNpz(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> SourceCase:
        path = tmp_path / "own.npz"
        x, y = _arrays(RECORDS, 1)
        np.savez(path, x=x, y=y)

        def append() -> None:
            more, labels = _arrays(50, 2)
            np.savez_compressed(path, x=np.r_[x, more], y=np.r_[y, labels])

        return SourceCase(
            options={"kind": "npz", "path": str(path)},
            task="digits",
            parameters=DIGITS,
            records=RECORDS,
            root=tmp_path,
            append=append,
            spoil=lambda marker: np.savez(path, x=x, y=np.array([marker, *map(str, y[1:])])),
            lose=path.unlink,
            missing=str(path),
        )


class TestPython(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourceCase:
        code, path = tmp_path / "lab_records.py", tmp_path / "own.npz"
        code.write_text(DATASET)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "lab_records", raising=False)
        x, y = _arrays(RECORDS, 1)
        np.savez(path, x=x, y=y)

        def append() -> None:
            more, labels = _arrays(50, 2)
            np.savez(path, x=np.r_[x, more], y=np.r_[y, labels])

        target = "lab_records:Records"
        return SourceCase(
            options={"kind": "python", "target": target, "arguments": {"path": str(path)}},
            task="digits",
            parameters=DIGITS,
            records=RECORDS,
            root=tmp_path,
            append=append,
            spoil=lambda marker: np.savez(path, x=x, y=np.array([marker, *map(str, y[1:])])),
            lose=path.unlink,
            missing=target,
        )


class TestImages(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> SourceCase:
        root = tmp_path / "scans"

        def write(count: int, seed: int, prefix: str) -> None:
            x, y = _arrays(count, seed)
            for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
                folder = root / str(label)
                folder.mkdir(parents=True, exist_ok=True)
                image = (pixels.reshape(8, 8) * 255).astype(np.uint8)
                Image.fromarray(image).save(folder / f"{prefix}{i:04d}.png")

        write(RECORDS, 1, "m")

        def spoil(marker: str) -> None:
            next(root.glob("3/*.png")).write_text(marker)

        return SourceCase(
            options={"kind": "images", "path": str(root), "size": [8, 8]},
            task="digits",
            parameters=DIGITS,
            records=RECORDS,
            root=tmp_path,
            append=lambda: write(50, 2, "a"),  # before the others by name
            spoil=spoil,
            lose=lambda: shutil.rmtree(root),
            missing=str(root),
        )
