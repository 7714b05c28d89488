"""The egress guard: what is not exactly the declared tensors, or an allowed metric, stays."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedfactory.contracts.model import BlobRef, ModelSpec
from fedfactory.wire.arrays import ArrayWriter, file_ref, header_of, spec_of, write_arrays
from site_agents.egress import Cleared, HeldBack, check_metrics, check_update


def _tensors() -> dict[str, Any]:
    rng = np.random.default_rng(7)
    return {
        "bias": rng.standard_normal(3).astype(np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "half": rng.standard_normal((2, 2)).astype(np.float16),
        "weight": rng.standard_normal((3, 4)),
    }


def _declared() -> ModelSpec:
    return spec_of(_tensors() | {"steps": np.array([3])})  # an integer buffer: not in an update


def _check(path: Path, most: float | None = None) -> HeldBack | Cleared:
    return check_update(path, _declared(), file_ref(path), most)


def _held(path: Path, word: str) -> None:
    found = _check(path)
    assert isinstance(found, HeldBack), found
    assert word in found.finding, found.finding


def _norm() -> float:
    flat = np.concatenate([t.astype(np.float64).ravel() for t in _tensors().values()])
    return float(np.linalg.norm(flat))


def test_the_declared_tensors_leave_and_their_norm_is_known(tmp_path: Path) -> None:
    write_arrays(tmp_path / "u", _tensors())
    found = _check(tmp_path / "u")
    assert isinstance(found, Cleared)
    assert found.norm_l2 == pytest.approx(_norm(), rel=1e-12)


@pytest.mark.rule("30")
def test_a_norm_above_the_plans_is_held_back_and_one_at_it_is_not(tmp_path: Path) -> None:
    write_arrays(tmp_path / "u", _tensors())
    cleared = _check(tmp_path / "u")
    assert isinstance(cleared, Cleared)
    assert _check(tmp_path / "u", cleared.norm_l2) == cleared
    assert isinstance(_check(tmp_path / "u", cleared.norm_l2 * 0.999), HeldBack)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t | {"extra": np.zeros(1, np.float32)}, "'extra' is not part"),
        (lambda t: {n: a for n, a in t.items() if n != "bias"}, "'bias' is missing"),
        (lambda t: t | {"weight": t["weight"].reshape(4, 3)}, "shape"),
        (lambda t: t | {"weight": t["weight"].astype(np.float32)}, "dtype"),
        (lambda t: t | {"weight": t["weight"].view(np.int64)}, "dtype"),
        (lambda t: t | {"steps": np.array([3])}, "'steps' is not part"),
        (lambda t: {**{n: a for n, a in t.items() if n != "bias"}, "b_as": t["bias"]}, "missing"),
    ],
)
@pytest.mark.rule("30")
def test_other_tensors_than_the_declared_are_held_back(
    tmp_path: Path, change: Any, word: str
) -> None:
    write_arrays(tmp_path / "u", change(_tensors()))
    _held(tmp_path / "u", word)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["bias", "half", "weight"])
@pytest.mark.rule("30")
def test_one_number_that_is_not_finite_is_held_back_and_its_tensor_named(
    tmp_path: Path, bad: float, name: str
) -> None:
    tensors = _tensors()
    tensors[name].reshape(-1)[-1] = bad
    write_arrays(tmp_path / "u", tensors)
    _held(tmp_path / "u", f"'{name}' holds non-finite")


def test_finite_numbers_whose_norm_overflows_are_held_back(tmp_path: Path) -> None:
    tensors = _tensors()
    tensors["weight"][0, 0] = 1e300
    write_arrays(tmp_path / "u", tensors)
    _held(tmp_path / "u", "too large")


def test_a_non_finite_number_in_any_piece_of_a_long_tensor_is_found(tmp_path: Path) -> None:
    size = 300_000  # 1.2 MB: several pieces, the last one short
    for place in (0, 65_535, 65_536, 131_072, size - 1):
        values = np.ones(size, np.float32)
        values[place] = np.nan
        ref = write_arrays(tmp_path / "u", {"w": values})
        found = check_update(tmp_path / "u", spec_of({"w": values}), ref, None)
        assert isinstance(found, HeldBack)
        assert "non-finite" in found.finding


# ---- tricks with the header ----------------------------------------------------------------------


def _rewritten(path: Path, change: Any) -> None:
    """Put another header before the same values; `change` gets and gives its JSON text."""
    write_arrays(path, _tensors())
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    text = change(raw[8:end].decode()).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])


def _edited(edit: Any) -> Any:
    def change(text: str) -> str:
        header = json.loads(text)
        edit(header)
        return json.dumps(header, separators=(",", ":"))

    return change


def _reversed(text: str) -> str:
    return json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":"))


def _overlap(header: dict[str, Any]) -> None:
    header["half"]["data_offsets"] = [8, 16]


def _gap(header: dict[str, Any]) -> None:
    header["weight"]["data_offsets"] = [n + 8 for n in header["weight"]["data_offsets"]]


@pytest.mark.parametrize(
    "change",
    [
        _edited(lambda header: header.update(__metadata__={"note": "records go here"})),
        _edited(lambda header: header["bias"].update(note="records go here")),
        _edited(_overlap),
        _edited(_gap),
        _edited(lambda header: header["bias"].update(shape=[3, 1])),
        _edited(lambda header: header["bias"].update(shape=[3.0])),
        _reversed,
        lambda text: text.rstrip() + " " * 8 * 20,  # what padding there is could carry a number
        lambda text: text.replace(":", ": ", 1),  # so could its spaces
        lambda text: text[:-1].rstrip() + "," + text.strip()[1:],  # every key twice
        lambda text: text.replace("bias", "b\\u0069as"),
        lambda text: "[" * 5000 + text,
        lambda text: text + " " * 17_000_000,
        lambda text: "{}",
    ],
)
def test_a_header_that_says_anything_else_is_held_back(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "u"
    _rewritten(path, change)
    assert isinstance(_check(path), HeldBack)


def test_every_spelling_of_the_header_but_ours_is_held_back_even_at_its_length(
    tmp_path: Path,
) -> None:
    def swap(text: str) -> str:  # the same tensors, the same length: two fields change places
        shape, offsets = '"shape":[3]', '"data_offsets":[0,12]'
        assert f"{shape},{offsets}" in text
        return text.replace(f"{shape},{offsets}", f"{offsets},{shape}")

    _rewritten(tmp_path / "u", swap)
    _held(tmp_path / "u", "more than the declared tensors")


def test_a_header_length_beyond_the_file_is_held_back(tmp_path: Path) -> None:
    path = tmp_path / "u"
    write_arrays(path, _tensors())
    raw = path.read_bytes()
    path.write_bytes((10**15).to_bytes(8, "little") + raw[8:])
    _held(path, "truncated")


def test_the_safetensors_librarys_metadata_is_held_back(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "u", metadata={"note": "records go here"})
    assert isinstance(_check(tmp_path / "u"), HeldBack)


@pytest.mark.parametrize("length", [0, 5, 8, 40, -1])
def test_a_shortened_file_is_held_back(tmp_path: Path, length: int) -> None:
    path = tmp_path / "u"
    write_arrays(path, _tensors())
    path.write_bytes(path.read_bytes()[:length])
    assert isinstance(_check(path), HeldBack)


def test_bytes_after_the_last_tensor_are_held_back(tmp_path: Path) -> None:
    path = tmp_path / "u"
    write_arrays(path, _tensors())
    path.write_bytes(path.read_bytes() + b"\0")
    assert isinstance(_check(path), HeldBack)


def test_no_file_is_held_back(tmp_path: Path) -> None:
    ref = BlobRef(digest="sha256:" + "0" * 64, bytes=4)
    assert isinstance(check_update(tmp_path / "none", _declared(), ref, None), HeldBack)


def test_a_file_that_is_not_the_referenced_one_is_held_back(tmp_path: Path) -> None:
    path = tmp_path / "u"
    ref = write_arrays(path, _tensors())
    other = BlobRef(digest="sha256:" + hashlib.sha256(b"other").hexdigest(), bytes=ref.bytes)
    found = check_update(path, _declared(), other, None)
    assert isinstance(found, HeldBack)
    assert "digest" in found.finding
    longer = BlobRef(digest=ref.digest, bytes=ref.bytes + 1)
    assert isinstance(check_update(path, _declared(), longer, None), HeldBack)


def test_every_changed_byte_of_the_values_is_found_by_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "u"
    ref = write_arrays(path, _tensors())
    raw = bytearray(path.read_bytes())
    for place in range(len(header_of(_declared().update_spec())), len(raw)):
        raw[place] ^= 1
        path.write_bytes(raw)
        assert isinstance(check_update(path, _declared(), ref, None), HeldBack), place
        raw[place] ^= 1


def test_memory_does_not_grow_with_the_update(tmp_path: Path) -> None:
    spec = spec_of({"w": np.empty(16_000_000, np.float32)})
    writer = ArrayWriter(tmp_path / "u", spec)
    piece = np.ones(1_000_000, np.float32)
    for _ in range(16):
        writer.write(piece)
    ref = writer.commit()
    tracemalloc.start()
    try:
        assert check_update(tmp_path / "u", spec, ref, None) == Cleared(norm_l2=4000.0)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


# ---- metrics -------------------------------------------------------------------------------------


def test_metrics_that_are_not_allowed_stay() -> None:
    assert check_metrics({"loss": 1.5, "secret": 2.0}, {"loss": 0, "accuracy": 0}) == {"loss": 1.5}


@pytest.mark.parametrize(
    ("value", "granularity", "expected"),
    [
        (0.123456, 0.01, 0.12),
        (0.31, 0.1, 0.3),
        (-0.04, 0.1, 0.0),
        (1234.5, 100, 1200.0),
        (0.7, 0.25, 0.75),
        (1e300, 1e-300, 1e300),
        (0.1 + 0.2, 0, 0.1 + 0.2),
    ],
)
def test_metrics_are_rounded_to_their_granularity(
    value: float, granularity: float, expected: float
) -> None:
    found = check_metrics({"m": value}, {"m": granularity})
    assert isinstance(found, dict)
    assert repr(found["m"]) == repr(expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("granularity", [0.0, 0.1])
def test_a_metric_that_is_not_finite_holds_everything_back(bad: float, granularity: float) -> None:
    found = check_metrics({"loss": bad, "accuracy": 1.0}, {"loss": granularity, "accuracy": 0})
    assert isinstance(found, HeldBack)
    assert check_metrics({"loss": bad}, {"accuracy": 0}) == {}
