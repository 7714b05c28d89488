"""One site's data of every kind of source, in which a test damages whatever one unit holds.

A `Body` is a list of records, each the unit's own; a writer puts it on disk for a kind of source.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from fedfactory.choices import values_of
from fedfactory.contracts.errors import FedfactoryError
from fedfactory.tasks.table import load_task
from site_agents.jobs.job import JOB, Job, read_result, write_file
from site_agents.jobs.settings import SourceOptions, WorkerSettings
from site_agents.worker.work import Worker
from tests.private_descents import mechanism, training

TABLE = ("age", "sex", "outcome")
SERIES = ("heat", "cycle", "soon")
LAB = """
import pickle

class Records:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.records = pickle.load(file)
    def __len__(self):
        return len(self.records)
    def __getitem__(self, i):
        found = self.records[i]
        if isinstance(found, str):
            raise ValueError(found)
        return found
"""


def written(name: str, **changed: Any) -> dict[str, Any]:
    """A task's parameters, as conf/ has them, for the columns here."""
    own = {
        "tabular": {
            "label": "outcome:0|1",
            "numeric": "age:50:20",
            "categorical": "sex:f|m",
            "hidden": 4,
        },
        "timeseries": {
            "label": "soon:0|1",
            "sensors": "heat:70:10",
            "order": "cycle",
            "window": 8,
            "stride": 4,
            "channels": 4,
        },
    }
    values = {k: v for k, v in values_of("task", name).items() if k not in ("name", "data")}
    return {**values, **own.get(name, {}), **changed}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of source for a task: how its records are made, damaged and written.

    `damages` are what may stand in the place of all records of unit 1.
    """

    task: str
    unit: str  # of the policy
    units: int
    records: Callable[[int], Sequence[Any]]  # of a unit, by its number
    damages: Sequence[Any]
    write: Callable[[Path, Sequence[Sequence[Any]]], Mapping[str, Any]]


def code_of(folder: Path, kind: Kind, body: Sequence[Sequence[Any]], /, **asked: Any) -> str | None:
    """Return the code of a private job on a site's data, as its coordinator hears it."""
    place = folder / "site"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    one = worker(kind, kind.write(place, body))
    parameters = asked.pop("parameters", None) or written(kind.task)
    try:
        one.check_form("own", kind.task, parameters)
    except FedfactoryError:
        return "no_data"
    base = place / "base.safetensors"
    load_task(kind.task).write_initial(parameters, 1, base)
    job = Job(
        kind="train",
        task=kind.task,
        task_parameters=parameters,
        training=training(),
        seed=1,
        site="lumi",
        round=1,
        base=str(base),
        source="own",
        mechanism=mechanism(steps=2, sample_rate=0.5, expected_batch=8.0),
        measurement=None,
    )
    (place / "job").mkdir()
    write_file(place / "job" / JOB, Job(**{f: getattr(job, f) for f in Job.__slots__} | asked))
    one.work(place / "job")
    return read_result(place / "job").failure


def worker(kind: Kind, options: Mapping[str, Any]) -> Worker:
    sources = {"own": SourceOptions(options=options, lineage="people", unit=kind.unit)}
    return Worker(WorkerSettings(site="lumi", sources=sources, threads=1, device="cpu"))


# ---- tables ----------------------------------------------------------------------------------


def table_row(unit: int) -> list[bytes]:
    return [f"p{unit},{20 + unit},{'fm'[unit % 2]},{unit % 2}".encode()]


def series_rows(unit: int) -> list[bytes]:
    return [f"p{unit},{60 + (unit + t) % 20},{t},{t % 2}".encode() for t in range(12)]


def csv_writer(columns: Sequence[str], unit: str | None, **options: Any) -> Any:
    def write(folder: Path, body: Sequence[Sequence[Any]]) -> Mapping[str, Any]:
        lines = [",".join(("patient", *columns)).encode(), *(row for rows in body for row in rows)]
        (folder / "own.csv").write_bytes(b"\n".join(lines) + b"\n")
        return {"kind": "csv", "path": str(folder / "own.csv"), "unit": unit, **options}

    return write


CSV_DAMAGES: list[list[bytes]] = [
    *(
        [line]
        for line in (
            b"", b"x", b",,,", b"p1,1e999,f,1", b"p1,-inf,f,1", b"p1,nan,f,1", b"p1,1e300,f,1",
            b"p1,old,f,1", b"p1,50,other,1", b"p1,50,f,2", b"p1,50,f,", b",50,f,1", b'p1,50,f,"1',
            b'"', b'p1,"50,f,1', b'"p1"x,50,f,1', b"p1,50,f,1,5", b"p1,50", b"\xff\xfe,50,f,1",
            b"p1,50,\xc3,1", b"\x00,\x00,\x00,\x00", b"p1,\x0050,f,1", b"p1," + b"9" * 400 + b",f,1",
            b"p" * (1 << 20) + b",50,f,1", "p\u2028,50,\u200bf,1".encode(), b"p1,5e1,f,1.0",
            b"p1,0x10,f,1", b"p1,1_0,f,1", b"p1;50;f;1", b"\t", b"p1,50,f,99999999999999999999",
        )
    ),
    [],
]  # fmt: skip
SERIES_DAMAGES: list[list[bytes]] = [
    *CSV_DAMAGES,
    [b"p1,70,1,0"],  # too short for any window
    [b"p1,70,soon,0"] * 12,
    [b"p1,70,2026-01-31,0", b"p1,70,3,0", b"p1,70,2026-01-31T10:00:00Z,0"] * 4,
    [b"p1,70,,0"] * 12,
    [b"p1,70,1,0"] * 12,  # all at one time
    [b"p1,70,1e400,0"] * 12,
    [b"p1,70,9999999-01-01,0"] * 12,
    [f"p1,70,{t},0".encode() for t in range(5000)],  # much longer than the others
]


def parquet_writer(columns: Sequence[str], unit: str | None) -> Any:
    def write(folder: Path, body: Sequence[Sequence[Any]]) -> Mapping[str, Any]:
        rows = [row for rows in body for row in rows]
        kinds = {"age": pa.float64(), "sex": pa.string(), "outcome": pa.int64()}
        kinds |= {"heat": pa.float32(), "cycle": pa.float64(), "soon": pa.float64()}
        names = ("patient", *columns)
        table = {}
        for i, name in enumerate(names):
            cells = [row[i] for row in rows]
            if any(isinstance(cell, bytes) for cell in cells):  # a text that is not UTF-8
                raw = [c.encode() if isinstance(c, str) else c for c in cells]
                binary = pa.array(raw, pa.binary())
                table[name] = pa.Array.from_buffers(
                    pa.string(), len(binary), binary.buffers(), binary.null_count
                )
            else:
                table[name] = pa.array(cells, kinds.get(name, pa.string()))
        path = folder / "own.parquet"
        parquet.write_table(pa.table(table), path, row_group_size=7)
        return {"kind": "parquet", "path": str(path), "unit": unit}

    return write


PARQUET_DAMAGES: list[list[tuple[Any, ...]]] = [
    *(
        [row]
        for row in (
            (None, None, None, None), ("p1", float("nan"), "f", 1), ("p1", float("inf"), "f", 1),
            ("p1", 1e300, "f", 1), ("p1", 50.0, "other", 1), ("p1", 50.0, None, 1),
            ("p1", 50.0, "f", 2), ("p1", 50.0, "f", -1), ("p1", 50.0, "f", None),
            (None, 50.0, "f", 1), ("p1", 50.0, b"\xff\xfe", 1), (b"\xff", 50.0, "f", 1),
            ("p1", 50.0, "", 1), ("p1", 50.0, "f" * 100_000, 2**62),
        )
    ),
    [],
]  # fmt: skip


# ---- arrays ----------------------------------------------------------------------------------


def array_record(features: tuple[int, ...], classes: int) -> Callable[[int], Sequence[Any]]:
    def records(unit: int) -> Sequence[Any]:
        x = np.random.default_rng(unit).random(features).astype(np.float32)
        return [(x, unit % classes, f"p{unit}")]

    return records


def window_records(unit: int) -> Sequence[Any]:
    generator = np.random.default_rng(unit)
    windows = generator.normal(70, 5, (3, 1, 8)).astype(np.float32)
    return [(x, i % 2, f"p{unit}") for i, x in enumerate(windows)]


def npz_writer(features: tuple[int, ...], unit: str | None) -> Any:
    def write(folder: Path, body: Sequence[Sequence[Any]]) -> Mapping[str, Any]:
        rows = [row for rows in body for row in rows]
        x = np.stack([row[0] for row in rows]) if rows else np.empty((0, *features), np.float32)
        labels = [row[1] for row in rows if row[1] is not ...]
        units = [row[2] for row in rows if row[2] is not ...]
        path = folder / "own.npz"
        y = np.array(labels) if labels else np.empty(0, np.int64)
        np.savez(path, x=x, y=y, who=np.array(units) if units else np.empty(0, "U1"))
        return {"kind": "npz", "path": str(path), "unit": unit}

    return write


def array_damages(features: tuple[int, ...]) -> list[list[Any]]:
    """What may stand for one record in arrays; `...` is an entry that was never written."""
    fine = np.full(features, 0.5, np.float32)
    odd = [np.full(features, value, np.float64) for value in (np.nan, np.inf, -np.inf, 1e300, -1.0)]
    return [
        *([(x, 1, "p1")] for x in odd),
        *([(fine, y, "p1")] for y in (-1, 10**6, 2**62, 1.5, float("nan"), float("inf"), 1.0)),
        [(fine, ..., "p1")],
        [(fine, 1, ...)],
        [(fine, 1, "")],
        [],
    ]


def python_writer(unit: str | None) -> Any:
    import pickle

    def write(folder: Path, body: Sequence[Sequence[Any]]) -> Mapping[str, Any]:
        (folder / "damage_lab.py").write_text(LAB)
        rows: list[Any] = []
        for row in (row for rows in body for row in rows):
            whole = isinstance(row, tuple) and len(row) == 3 and row[2] is not ...
            rows.append(row[:2] if unit is None and whole else row)
        (folder / "own.pickle").write_bytes(pickle.dumps(rows))
        sys.modules.pop("damage_lab", None)
        sys.path_importer_cache.clear()
        sys.path[:] = [str(folder), *(p for p in sys.path if not p.endswith("/site"))]
        arguments = {"path": str(folder / "own.pickle")}
        return {"kind": "python", "target": "damage_lab:Records", "arguments": arguments}

    return write


def python_damages(features: tuple[int, ...]) -> list[list[Any]]:
    fine = np.full(features, 0.5, np.float32)
    whole = [rows for rows in array_damages(features) if not rows or ... not in rows[0][1:]]
    return [
        *whole,
        ["it raises this"],
        [(fine,)],
        [(fine, 1, "p1", 4)],
        [None],
        [7],
        [(fine[..., :-1], 1, "p1")],
        [(np.full(features, "x"), 1, "p1")],
        [([[], [1]], 1, "p1")],
        [(fine, "nobody", "p1")],
        [(fine, None, "p1")],
        [(fine, [1, 2], "p1")],
        [(fine, 1, None)],
        [(fine, 1, float("nan"))],
        [(fine, 1, ["a", "b"])],
        [(fine, 10**400, "p1")],
        [(None, 1, "p1")],
    ]


# ---- images ----------------------------------------------------------------------------------


def image_record(unit: int) -> Sequence[Any]:
    pixels = np.random.default_rng(unit).integers(0, 255, (8, 8)).astype(np.uint8)
    return [(str(unit % 10), f"p{unit}_1.png", pixels)]


def image_writer(unit: str | None) -> Any:
    def write(folder: Path, body: Sequence[Sequence[Any]]) -> Mapping[str, Any]:
        root = folder / "scans"
        root.mkdir()
        for label, name, content in (row for rows in body for row in rows):
            (root / label).mkdir(exist_ok=True)
            path = root / label / name
            if callable(content):
                content(path)
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                Image.fromarray(content).save(path)
        return {"kind": "images", "path": str(root), "size": [8, 8], "unit": unit}

    return write


def _png(size: tuple[int, int], mode: str) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, size).save(path)


def _cut(path: Path) -> None:
    _png((8, 8), "L")(path)
    path.write_bytes(path.read_bytes()[:50])


def _fifo(path: Path) -> None:
    import os

    os.mkfifo(path)


IMAGE_DAMAGES: list[list[Any]] = [
    *(
        [("3", "p1_1.png", content)]
        for content in (
            b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 100, b"GIF89a" + b"\xff" * 50,
            b"II*\0" + b"\xff" * 64, b"BM" + b"\xff" * 64, b"P6 99999 99999 255 x",
            _cut, _fifo, _png((1, 1), "L"), _png((300, 2), "RGBA"), _png((20_000, 20_000), "1"),
            lambda path: path.mkdir(), lambda path: path.symlink_to(path),
            lambda path: path.symlink_to(path.parent / "gone"),
        )
    ),
    [("unknown", "p1_1.png", b"x")],
    [("3", "nameless.png", _png((8, 8), "L"))],
    [("3", "_1.png", _png((8, 8), "L"))],
    [("3", "p1_\udcff.png", _png((8, 8), "L"))],
    [("..", "beside.txt", b"x")],
    [(".", "beside.txt", b"x")],
    [],
]  # fmt: skip

UNIT_PATTERN = "([^_]+)_"
KINDS: Mapping[str, Kind] = {
    "csv": Kind(task="tabular", unit="row", units=20, records=table_row, damages=CSV_DAMAGES,
                write=csv_writer(TABLE, None)),
    "csv by unit": Kind(task="tabular", unit="patient", units=20, records=table_row,
                        damages=CSV_DAMAGES, write=csv_writer(TABLE, "patient")),
    "csv series": Kind(task="timeseries", unit="patient", units=12, records=series_rows,
                       damages=SERIES_DAMAGES, write=csv_writer(SERIES, "patient")),
    "parquet": Kind(
        task="tabular", unit="row", units=20, damages=PARQUET_DAMAGES,
        records=lambda u: [(f"p{u}", 20.0 + u, "fm"[u % 2], u % 2)],
        write=parquet_writer(TABLE, None),
    ),
    "parquet by unit": Kind(
        task="tabular", unit="patient", units=20, damages=PARQUET_DAMAGES,
        records=lambda u: [(f"p{u}", 20.0 + u, "fm"[u % 2], u % 2)],
        write=parquet_writer(TABLE, "patient"),
    ),
    "npz": Kind(task="digits", unit="row", units=20, records=array_record((64,), 10),
                damages=array_damages((64,)), write=npz_writer((64,), None)),
    "npz by unit": Kind(task="breast_cancer", unit="who", units=20,
                        records=array_record((30,), 2), damages=array_damages((30,)),
                        write=npz_writer((30,), "who")),
    "npz windows": Kind(task="timeseries", unit="who", units=12, records=window_records,
                        damages=array_damages((1, 8)), write=npz_writer((1, 8), "who")),
    "python": Kind(task="digits", unit="row", units=20, records=array_record((64,), 10),
                   damages=python_damages((64,)), write=python_writer(None)),
    "python by unit": Kind(task="breast_cancer", unit="who", units=20,
                           records=array_record((30,), 2), damages=python_damages((30,)),
                           write=python_writer("who")),
    "images": Kind(task="digits", unit="row", units=20, records=image_record,
                   damages=IMAGE_DAMAGES, write=image_writer(None)),
    "images by unit": Kind(task="digits", unit="patient", units=20, records=image_record,
                           damages=IMAGE_DAMAGES, write=image_writer(UNIT_PATTERN)),
}  # fmt: skip


def body_of(kind: Kind) -> list[Sequence[Any]]:
    return [kind.records(unit) for unit in range(kind.units)]
