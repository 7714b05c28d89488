"""What a site's table may look like and still serve a task; windows, units and large files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fedfactory.choices import values_of
from fedfactory.contracts.errors import DataError
from fedfactory.tasks.examples import Examples
from fedfactory.tasks.table import load_task
from site_agents.data.csv_file import Csv
from site_agents.data.generation import generate, write_table
from site_agents.data.sources import open_source

TABULAR = {
    "kind": "classification",
    "label": "outcome:0|1",
    "numeric": "age:50:20,bmi:25:5",
    "categorical": "sex:f|m",
    "model": "linear",
    "hidden": 1,
}
SERIES = {k: v for k, v in values_of("task", "timeseries").items() if k not in ("name", "data")}


def load(options: dict[str, Any], task: str, parameters: Any) -> tuple[Examples, Examples]:
    data = open_source("mine", options, "lineage").load(load_task(task), parameters)
    return data.train, data.test


def together(parts: tuple[Examples, Examples]) -> list[tuple[float, ...]]:
    return sorted(
        (*x.tolist(), float(y)) for part in parts for x, y in zip(part.x, part.y, strict=True)
    )


def test_a_sites_own_names_and_forms(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    rows = ["Alter;BMI;Geschlecht;tot;Bemerkung"]
    rows += [
        f' {20 + i} ;2{i % 10},5; {"wm"[i % 2]} ;{["nein", "ja"][i % 2]};"ä;\nö"' for i in range(50)
    ]
    rows += ["k.A.;25,5;w;ja;", "70;k.A.;m;nein;", "71;22,0;k.A.;nein;", "72;22,0;m;k.A.;"]
    path.write_text("\n".join(rows), encoding="latin1")
    parts = load(
        {
            "kind": "csv",
            "path": str(path),
            "delimiter": ";",
            "decimal": ",",
            "encoding": "latin1",
            "null": ["", "k.A."],
            "columns": {"age": "Alter", "bmi": "BMI", "sex": "Geschlecht", "outcome": "tot"},
            "map": {"sex": {"w": "f"}, "outcome": {"nein": 0, "ja": 1}},
            "missing": {"age": "drop", "bmi": 24, "sex": "f", "outcome": "drop"},
        },
        "tabular",
        TABULAR,
    )
    expected = [(20.0 + i, 20 + i % 10 + 0.5, float(i % 2), float(i % 2)) for i in range(50)]
    assert together(parts) == sorted([*expected, (70, 24, 1, 0), (71, 22, 0, 0)])


def test_the_types_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    count = 60
    table = {
        "age": pa.array(range(count), pa.uint8()),
        "bmi": pa.array([float("nan"), *range(1, count)], pa.float32()),
        "sex": pa.array(["f", "m"] * 30).dictionary_encode(),
        "outcome": pa.array([i % 2 == 0 for i in range(count)]),
    }
    parquet.write_table(pa.table(table), path, row_group_size=7)
    options = {
        "kind": "parquet",
        "path": str(path),
        "missing": {"bmi": 25.0},
        "map": {"outcome": {"true": "1", "false": "0"}},
    }
    expected = [(i, i or 25, i % 2, (i + 1) % 2) for i in range(count)]
    assert together(load(options, "tabular", TABULAR)) == sorted(expected)


def test_whole_numbers_with_gaps_are_names_too(tmp_path: Path) -> None:
    """As pandas writes them: floats, NaN for what is missing."""
    path = tmp_path / "own.parquet"
    y = pa.array([float("nan"), *(float(i % 2) for i in range(59))])
    table = {"age": range(60), "bmi": range(60), "sex": ["f"] * 60, "outcome": y}
    parquet.write_table(pa.table(table), path)
    options = {"kind": "parquet", "path": str(path), "missing": {"outcome": "drop"}}
    assert len(together(load(options, "tabular", TABULAR))) == 59


def test_a_regressions_label_is_scaled_as_declared(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("age,cost\n" + "\n".join(f"{i},{1000 + 10 * i}" for i in range(60)))
    costs = {
        **TABULAR,
        "kind": "regression",
        "label": "cost:1000:500",
        "categorical": "",
        "numeric": "age:0:1",
    }
    parts = load({"kind": "csv", "path": str(path)}, "tabular", costs)
    assert [y for _, y in together(parts)] == pytest.approx([i / 50 for i in range(60)])


def test_all_rows_of_a_unit_are_on_one_side(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    generator = np.random.default_rng(1)
    units = generator.integers(0, 80, 1000)
    rows = [f"{i},25,f,{i % 2},p{unit}" for i, unit in enumerate(units)]
    path.write_text("age,bmi,sex,outcome,patient\n" + "\n".join(rows))
    train, test = load({"kind": "csv", "path": str(path), "unit": "patient"}, "tabular", TABULAR)
    owner = {float(i): unit for i, unit in enumerate(units)}
    sides = [{owner[x] for x in part.x[:, 0].tolist()} for part in (train, test)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 80
    for part, found in zip((train, test), sides, strict=True):
        assert part.unit is not None
        assert len(np.unique(part.unit)) == len(found)
        named = {
            (u, owner[x]) for u, x in zip(part.unit.tolist(), part.x[:, 0].tolist(), strict=True)
        }
        assert len(named) == len(found)  # one number for each, and only one


def _expected_windows(table: Any) -> set[bytes]:
    """Every window of a generated table, worked out row by row."""
    sensors = [name.split(":")[0] for name in SERIES["sensors"].split(",")]
    rows: dict[str, list[tuple[float, ...]]] = {}
    for row in table.to_pylist():
        rows.setdefault(row["machine"], []).append((row["cycle"], *(row[s] for s in sensors)))
    found = set()
    for readings in rows.values():
        values = np.array([row[1:] for row in sorted(readings)], np.float32)
        for start in range(0, len(values) - SERIES["window"] + 1, SERIES["stride"]):
            found.add(np.ascontiguousarray(values[start : start + SERIES["window"]].T).tobytes())
    return found


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_windows_are_of_one_machine_in_order_of_time(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"own.{suffix}"
    table = generate("timeseries", SERIES, 30, 1)
    shuffled = table.take(np.random.default_rng(1).permutation(table.num_rows))
    write_table(shuffled, path)
    options = {"kind": suffix, "path": str(path), "unit": "machine"}
    train, test = load(options, "timeseries", SERIES)
    found = [x.tobytes() for part in (train, test) for x in np.ascontiguousarray(part.x)]
    assert set(found) == _expected_windows(table)
    assert len(found) == len(set(found))
    labels = {row["machine"]: [] for row in table.to_pylist()}
    for row in table.to_pylist():
        labels[row["machine"]].append(int(row["fails_soon"]))
    last = [y[i + 31] for y in labels.values() for i in range(0, len(y) - 31, 8)]
    assert sorted(last) == sorted([*train.y.tolist(), *test.y.tolist()])


@pytest.mark.parametrize("form", ["naive", "zoned", "typed"])
def test_time_may_be_dates(form: str, tmp_path: Path) -> None:
    table = generate("timeseries", SERIES, 12, 1)
    begin = datetime(2026, 1, 31, 23, tzinfo=UTC)
    times = [begin + timedelta(minutes=cycle) for cycle in table.column("cycle").to_pylist()]
    place = table.column_names.index("cycle")
    texts = [time.isoformat()[: 19 if form == "naive" else None] for time in times]
    cells = pa.array(times if form == "typed" else texts)
    dated = table.set_column(place, "when", cells)
    dated = dated.take(np.random.default_rng(1).permutation(table.num_rows))
    path = tmp_path / ("own.parquet" if form == "typed" else "own.csv")
    write_table(dated, path)
    options = {
        "kind": path.suffix[1:],
        "path": str(path),
        "unit": "machine",
        "columns": {"cycle": "when"},
    }
    train, test = load(options, "timeseries", SERIES)
    found = {x.tobytes() for part in (train, test) for x in np.ascontiguousarray(part.x)}
    assert found == _expected_windows(table)


def test_windows_need_a_unit(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    write_table(generate("timeseries", SERIES, 12, 1), path)
    with pytest.raises(DataError, match=r"own\.csv: windows need a unit.*unit: COLUMN"):
        load({"kind": "csv", "path": str(path)}, "timeseries", SERIES)


def test_time_that_is_neither_number_nor_date(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    table = generate("timeseries", SERIES, 12, 1)
    place = table.column_names.index("cycle")
    write_table(table.set_column(place, "cycle", pa.array(["soon"] * table.num_rows)), path)
    with pytest.raises(DataError, match=r"own\.csv.*'cycle'.*neither numbers nor"):
        load({"kind": "csv", "path": str(path), "unit": "machine"}, "timeseries", SERIES)


def test_a_file_larger_than_its_budget_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    parameters = {
        k: v for k, v in values_of("task", "tabular").items() if k not in ("name", "data")
    }
    write_table(generate("tabular", parameters, 20_000, 1), path)
    whole = Csv("mine", {"kind": "csv", "path": str(path)}, "lineage")
    small = Csv("mine", {"kind": "csv", "path": str(path)}, "lineage")
    small.piece_bytes, small.memory_bytes = 1 << 15, 1 << 16
    assert path.stat().st_size > 10 * small.memory_bytes
    task = load_task("tabular")
    schema = task.schema(parameters)
    assert max(len(piece) for piece in small.pieces(schema)) < 1000
    expected, found = (source.load(task, parameters) for source in (whole, small))
    for side in ("train", "test"):
        one, other = getattr(expected, side), getattr(found, side)
        assert np.array_equal(one.x, other.x)
        assert np.array_equal(one.y, other.y)
    assert isinstance(found.train.x.base, np.memmap)
    assert not isinstance(expected.train.x.base, np.memmap)
    assert list(tmp_path.iterdir()) == [path]


def test_npz_windows_with_units(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    generator = np.random.default_rng(1)
    x = generator.normal(50, 1, (200, 4, 32)).astype(np.float32)
    y = generator.integers(0, 2, 200)
    np.savez(path, readings=x, soon=y, pump=np.arange(200) // 4)
    options = {"kind": "npz", "path": str(path), "x": "readings", "y": "soon", "unit": "pump"}
    train, test = load(options, "timeseries", SERIES)
    assert len(train) + len(test) == 200
    assert train.unit is not None
    assert set(np.bincount(train.unit)) == {4}
