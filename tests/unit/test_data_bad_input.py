"""What bad data get: an error that names file and column, says what was expected, shows no value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from fedfactory.contracts.errors import DataError, UsageError, ValueRangeError
from fedfactory.tasks.table import load_task
from site_agents.data.sources import open_source

TABULAR = {
    "kind": "classification",
    "label": "outcome:0|1",
    "numeric": "age:50:20",
    "categorical": "sex:f|m",
    "model": "linear",
    "hidden": 1,
}
VALUE = "77123"
HEADER = "age,sex,outcome"
ROWS = [f"{20 + i},{'fm'[i % 2]},{i % 2}" for i in range(60)]


def load(options: dict[str, Any], task: str = "tabular", parameters: Any = TABULAR) -> Any:
    return open_source("mine", options, "lineage").load(load_task(task), parameters)


def csv(tmp_path: Path, *lines: str) -> dict[str, Any]:
    path = tmp_path / "own.csv"
    path.write_text("\n".join(lines) + "\n")
    return {"kind": "csv", "path": str(path)}


def refused(
    options: dict[str, Any], *said: str, task: str = "tabular", like: Any = TABULAR
) -> None:
    with pytest.raises(DataError) as caught:
        load(options, task, like)
    told = f"{caught.value} {caught.value.diagnostic}"
    for words in (*said, options.get("path", "")):
        assert words in told
    assert VALUE not in told


CSV_CASES = {
    "no rows": ([HEADER], ["holds no records"]),
    "a column is missing": (["age,outcome", "20,0"], ["column 'sex'", "found age, outcome"]),
    "a column is there twice": (["age,age,sex,outcome", "1,2,f,0"], ["'age' is there 2 times"]),
    "no number": ([HEADER, *ROWS, f"x{VALUE},f,1"], ["column 'age'", "1 of 61 values are no num"]),
    "not finite": ([HEADER, *ROWS, "1e999,f,1"], ["column 'age'", "1 of 61 values are not finite"]),
    "missing": ([HEADER, *ROWS, ",f,1"], ["column 'age'", "1 of 61 values are missing"]),
    "a nan is missing": ([HEADER, *ROWS, "nan,f,1"], ["'age'", "1 of 61 values are missing"]),
    "label in no map": ([HEADER, *ROWS, f"1,f,{VALUE}"], ["'outcome'", "expected 0, 1", "1 of 61"]),
    "no such category": ([HEADER, *ROWS, f"1,{VALUE},1"], ["'sex'", "expected f, m"]),
    "another unit": ([HEADER, *ROWS, f"{VALUE}000000,f,1"], ["column 'age'", "outside", "1 of 61"]),
    "too many cells": ([HEADER, *ROWS, f"1,f,1,{VALUE}"], ["has 4 cells, expected 3"]),
    "too few cells": ([HEADER, *ROWS, VALUE], ["has 1 cells, expected 3"]),
}


@pytest.mark.parametrize("case", CSV_CASES)
def test_csv(case: str, tmp_path: Path) -> None:
    lines, said = CSV_CASES[case]
    refused(csv(tmp_path, *lines), *said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no table"),
        (b"age,sex,outcome\n20,f\xff,1\n", "in utf8"),
        (b"\xff\xfea\0g\0e\0\n\0", "in utf8"),
        (b"\x00\x01\x02" * 1000, "holds no table"),
    ],
)
def test_csv_that_is_no_text(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes(content)
    refused({"kind": "csv", "path": str(path)}, said)


def test_a_missing_label_can_only_be_dropped(tmp_path: Path) -> None:
    options = csv(tmp_path, HEADER, *ROWS, "20,f,")
    refused({**options, "missing": {"outcome": "1"}}, "'outcome'", "outcome: drop")
    assert sum(map(len, _parts({**options, "missing": {"outcome": "drop"}}))) == 60


def test_a_stand_in_that_does_not_fit_its_column(tmp_path: Path) -> None:
    options = csv(tmp_path, HEADER, *ROWS)
    for column, rule in (("age", "old"), ("sex", "x")):
        with pytest.raises(UsageError, match=rf"missing\.{column}"):
            load({**options, "missing": {column: rule}})


def test_a_map_to_what_the_task_does_not_have(tmp_path: Path) -> None:
    options = {**csv(tmp_path, HEADER, *ROWS), "map": {"sex": {"female": "w"}}}
    refused(options, "'sex'", "'w'")


PARQUET_CASES: dict[str, tuple[Any, list[str]]] = {
    "texts for numbers": ({"age": ["1"] * 60}, ["column 'age'", "holds texts"]),
    "dates for numbers": ({"age": pa.array([1] * 60, pa.date32())}, ["'age'", "date32"]),
    "lists for names": ({"sex": [["f"]] * 60}, ["'sex'", "list"]),
    "nulls": ({"sex": [None, *"fm" * 29, "f"]}, ["'sex'", "1 of 60 values are missing"]),
    "infinity": ({"age": [float("inf")] * 60}, ["'age'", "60 of 60 values are not finite"]),
    "labels": ({"outcome": [int(VALUE)] * 60}, ["'outcome'", "60 of 60"]),
    "all null": ({"age": pa.nulls(60)}, ["'age'", "60 of 60 values are missing"]),
}


@pytest.mark.parametrize("case", PARQUET_CASES)
def test_parquet(case: str, tmp_path: Path) -> None:
    changed, said = PARQUET_CASES[case]
    columns = {"age": range(60), "sex": ["f", "m"] * 30, "outcome": [0, 1] * 30}
    path = tmp_path / "own.parquet"
    parquet.write_table(pa.table({**columns, **changed}), path)
    refused({"kind": "parquet", "path": str(path)}, *said)


@pytest.mark.parametrize("keep", [0, 3, 4, 200, -8, -300])
def test_parquet_that_is_not_whole(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    parquet.write_table(pa.table({"age": [int(VALUE)] * 300}), path)
    path.write_bytes(path.read_bytes()[:keep])
    refused({"kind": "parquet", "path": str(path)}, "not a whole Parquet file")


def test_parquet_with_damaged_pages(tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    columns = {"age": np.arange(6000.0), "sex": ["f", "m"] * 3000, "outcome": [0, 1] * 3000}
    parquet.write_table(pa.table(columns), path)
    whole = bytearray(path.read_bytes())
    whole[4:4000] = bytes(3996)
    path.write_bytes(whole)
    refused({"kind": "parquet", "path": str(path)})


GOOD_X, GOOD_Y = np.zeros((50, 64), np.float32), np.zeros(50, np.int64)
NPZ_CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no y": ({"x": GOOD_X}, ["no array 'y'; found x"]),
    "shape": ({"x": GOOD_X[:, :5], "y": GOOD_Y}, ["expected (examples, 64)"]),
    "length": ({"x": GOOD_X, "y": GOOD_Y[:3]}, ["'y' has shape (3,), expected (50,)"]),
    "no records": ({"x": GOOD_X[:0], "y": GOOD_Y[:0]}, ["no records"]),
    "label": ({"x": GOOD_X, "y": GOOD_Y + 10}, ["label 'y' is outside 0 to 9 in 50"]),
    "names": ({"x": GOOD_X, "y": np.array(["a"] * 50)}, ["none of 'y'", "50 of 50"]),
    "nan": ({"x": GOOD_X * np.nan, "y": GOOD_Y}, ["column 'x0' is not finite in 50"]),
    "range": ({"x": GOOD_X + 16, "y": GOOD_Y}, ["column 'x0' is outside 0 to 1 in 50"]),
    "objects": ({"x": np.array([{}] * 50, dtype=object), "y": GOOD_Y}, ["'x' holds Python obj"]),
    "strings": ({"x": np.array([VALUE] * 50), "y": GOOD_Y}, ["expected numbers"]),
    "scalar": ({"x": np.float32(1), "y": GOOD_Y}, ["own.npz"]),
    "fortran": ({"x": np.asfortranarray(GOOD_X + 0), "y": GOOD_Y}, ["column by column"]),
}
DIGITS = {"model": "mlp"}


@pytest.mark.parametrize("case", NPZ_CASES)
def test_npz(case: str, tmp_path: Path) -> None:
    arrays, said = NPZ_CASES[case]
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)
    refused({"kind": "npz", "path": str(path)}, *said, task="digits", like=DIGITS)


@pytest.mark.parametrize("damage", [slice(0, 0), slice(0, -200), slice(3, None), slice(100, None)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_that_is_not_whole(damage: slice, save: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    save(path, x=GOOD_X, y=GOOD_Y)
    path.write_bytes(path.read_bytes()[damage])
    refused({"kind": "npz", "path": str(path)}, "NPZ", task="digits", like=DIGITS)


def test_npz_whose_numbers_were_damaged(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, x=GOOD_X, y=GOOD_Y)
    whole = bytearray(path.read_bytes())
    whole[5000] ^= 0xFF  # the archive's checksum finds it
    path.write_bytes(whole)
    refused({"kind": "npz", "path": str(path)}, "NPZ", task="digits", like=DIGITS)


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_paths_that_are_no_file(kind: str, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refused({"kind": kind, "path": str(tmp_path / "gone")}, "no such file")
    refused({"kind": kind, "path": str(tmp_path)}, "is a folder")
    refused({"kind": kind, "path": str(loop)}, "Too many levels of symbolic links")
    with pytest.raises(ValueRangeError, match=r"data\.mine\.path='own.csv': expected an absolute"):
        load({"kind": kind, "path": "own.csv"})


def _folder(tmp_path: Path) -> Path:
    root = tmp_path / "scans"
    for i in range(40):
        (root / str(i % 10)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(root / str(i % 10) / f"{i}.png")
    return root


def _other_class(root: Path) -> str:
    (root / "ten").mkdir()
    return "ten"


def _no_image(root: Path) -> str:
    (root / "3" / "notes.txt").write_text(VALUE)
    return "notes.txt"


def _cut_image(root: Path) -> str:
    path = root / "3" / "13.png"
    path.write_bytes(path.read_bytes()[:50])
    return "13.png"


def _file_beside_classes(root: Path) -> str:
    (root / "list.txt").write_text(VALUE)
    return "list.txt"


def _folder_in_class(root: Path) -> str:
    (root / "3" / "more").mkdir()
    return "more"


def _loop_in_class(root: Path) -> str:
    loop = root / "3" / "loop.png"
    loop.symlink_to(loop)
    return "loop.png"


def _loop_beside_classes(root: Path) -> str:
    loop = root / "loop"
    loop.symlink_to(loop)
    return "loop"


@pytest.mark.parametrize(
    "spoil",
    [
        _other_class,
        _no_image,
        _cut_image,
        _file_beside_classes,
        _folder_in_class,
        _loop_in_class,
        _loop_beside_classes,
    ],
)
def test_images(spoil: Callable[[Path], str], tmp_path: Path) -> None:
    root = _folder(tmp_path)
    named = spoil(root)
    options = {"kind": "images", "path": str(root), "size": [8, 8]}
    refused(options, named, task="digits", like=DIGITS)


def test_an_image_that_claims_to_be_huge(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    Image.new("1", (20_000, 20_000)).save(root / "3" / "bomb.png")
    options = {"kind": "images", "path": str(root), "size": [8, 8]}
    refused(options, "bomb.png", task="digits", like=DIGITS)


def test_images_of_another_shape_or_task(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    options = {"kind": "images", "path": str(root), "size": [9, 8]}
    refused(options, "(1, 9, 8)", "(64,)", task="digits", like=DIGITS)
    costs = {**TABULAR, "kind": "regression", "label": "cost:1:1"}
    refused(options, "predicts a number", like=costs)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"size": [8]}, "size"),
        ({"size": [8, 0]}, "size"),
        ({"channels": 2}, "channels"),
        ({"unit": "("}, "unit"),
        ({"unit": "[0-9]+"}, "unit"),
        ({"path": 3}, "path"),
    ],
)
def test_options_of_images(changed: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"data\.mine\.?.*{key}"):
        open_source("mine", {"kind": "images", "path": "/x", "size": [8, 8], **changed}, "lineage")


LAB = """
class Short:
    def __len__(self): return 50
    def __getitem__(self, i): return (1,)

class Raises(Short):
    def __getitem__(self, i): raise ValueError("77123")

class Ragged(Short):
    def __getitem__(self, i): return [0.0] * (64 + i), 0

class Mixed(Short):
    def __getitem__(self, i): return ([0.0] * 64, 0, "a") if i else ([0.0] * 64, 0)

def nothing(): raise OSError("77123")
"""
PYTHON_CASES = {
    "lab:Short": ["record 0 has 1 parts"],
    "lab:Raises": ["record 0", "ValueError", "lab.py:7"],
    "lab:Ragged": ["ValueError"],
    "lab:Mixed": ["some records have a unit"],
    "lab:nothing": ["OSError"],
    "lab:Missing": ["AttributeError"],
    "no_such_lab:Scans": ["ModuleNotFoundError"],
}


@pytest.mark.parametrize("target", PYTHON_CASES)
def test_python(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "lab", raising=False)
    options = {"kind": "python", "target": target}
    refused(options, target, *PYTHON_CASES[target], task="digits", like=DIGITS)


def test_a_target_without_a_name() -> None:
    with pytest.raises(ValueRangeError, match=r"data\.mine\.target=lab: expected module:callable"):
        open_source("mine", {"kind": "python", "target": "lab"}, "lineage")


def test_kinds_and_options_are_named() -> None:
    with pytest.raises(UsageError, match=r"unknown kind of data source 'cvs'.*did you mean 'csv'"):
        open_source("mine", {"kind": "cvs"}, "lineage")
    with pytest.raises(UsageError, match=r"data\.mine\.kind: expected one of csv"):
        open_source("mine", {}, "lineage")
    with pytest.raises(UsageError, match=r"data\.mine\.path: no value"):
        open_source("mine", {"kind": "csv"}, "lineage")
    with pytest.raises(UsageError, match=r"data\.mine\.pth.*did you mean 'data.mine.path'"):
        open_source("mine", {"kind": "csv", "path": "/x", "pth": "/y"}, "lineage")
    with pytest.raises(UsageError, match=r"data\.mine.*\.missing"):
        open_source("mine", {"kind": "csv", "path": "/x", "missing": ["age"]}, "lineage")
    for key, value in (("delimiter", "ab"), ("decimal", ""), ("encoding", "klingon")):
        with pytest.raises(UsageError, match=rf"data\.mine\.{key}"):
            open_source("mine", {"kind": "csv", "path": "/x", key: value}, "lineage")


def test_data_for_a_task_that_takes_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="takes no data"):
        load(csv(tmp_path, HEADER, *ROWS), "echo", {"megabytes": 1})


def _parts(options: dict[str, Any]) -> tuple[Any, Any]:
    data = load(options)
    return data.train, data.test
