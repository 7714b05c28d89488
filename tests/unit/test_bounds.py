"""Every number that crosses a wire has a bound in its type, and the codec names what breaks it."""

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfactory.contracts.bounds import MOST, Count, Metrics, Range, Seconds, check_fields
from fedfactory.contracts.codec import decode, from_json, to_json
from fedfactory.contracts.errors import FieldError, IntegrityError, ProtocolError
from fedfactory.contracts.model import BlobRef, TensorSpec
from fedfactory.contracts.plans import SignedOrder, SignedRunEnded
from fedfactory.contracts.questions import Answer, SignedQuery
from fedfactory.contracts.updates import Reply
from fedfactory.coordinator.run_settings import RunSettings
from fedfactory.rounds.events import Event
from fedfactory.wire import membership, operations
from fedfactory.wire.arrays import ArrayFile, write_arrays
from site_agents.jobs.job import Job, JobResult

WIRE = (
    *(Reply, SignedOrder, SignedRunEnded, SignedQuery, Answer, RunSettings, Job, JobResult),
    *get_args(Event),
    *(
        value
        for module in (operations, membership)
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    ),
)


def bare(kind: Any, where: str) -> list[str]:
    """Return the numbers of a type that have no bound."""
    origin = get_origin(kind)
    if origin is Annotated:
        inner = get_args(kind)[0]
        return [] if inner in (int, float) else bare(inner, where)
    if kind in (int, float):
        return [where]
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        return [found for name, hint in hints.items() for found in bare(hint, f"{where}.{name}")]
    if origin in (Union, types.UnionType, tuple):
        return [found for option in get_args(kind) for found in bare(option, where)]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return bare(get_args(kind)[1], f"{where}.*")
    return []


@pytest.mark.parametrize("kind", WIRE, ids=lambda kind: kind.__name__)
@pytest.mark.rule("34")
def test_no_number_crosses_a_wire_without_a_bound(kind):
    assert bare(kind, kind.__name__) == []


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    count: Count | None
    seconds: Seconds
    metrics: Metrics


def wish(**changes):
    return {"count": 1, "seconds": 0.5, "metrics": {"loss": 1.0}, **changes}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"count":-1,"seconds":0,"metrics":{}}', "Wish.count"),
        ('{"count":9007199254740993,"seconds":0,"metrics":{}}', "Wish.count"),
        ('{"count":1.5,"seconds":0,"metrics":{}}', "Wish.count"),
        ('{"count":true,"seconds":0,"metrics":{}}', "Wish.count"),
        ('{"count":1' + "0" * 400 + ',"seconds":0,"metrics":{}}', "Wish.count"),
        ('{"count":1' + "0" * 100_000 + ',"seconds":0,"metrics":{}}', "Wish.count"),
        ('{"count":1,"seconds":-0.5,"metrics":{}}', "Wish.seconds"),
        ('{"count":1,"seconds":NaN,"metrics":{}}', "Wish.seconds"),
        ('{"count":1,"seconds":1e400,"metrics":{}}', "Wish.seconds"),
        ('{"count":1,"seconds":1' + "0" * 400 + ',"metrics":{}}', "Wish.seconds"),
        ('{"count":1,"seconds":0,"metrics":{"loss":-Infinity}}', "Wish.metrics.loss"),
        ('{"count":1,"seconds":0,"metrics":{"loss":1e41}}', "Wish.metrics.loss"),
        ('{"count":1,"seconds":0,"metrics":{"a b":1}}', "Wish.metrics"),
        ('{"count":1,"seconds":0,"metrics":{"":1}}', "Wish.metrics"),
    ],
)
def test_the_error_names_the_field_and_what_it_expects(text, field):
    with pytest.raises(FieldError) as refused:
        from_json(Wish, text)
    assert refused.value.finding.startswith(f"{field}: expected ")
    assert len(str(refused.value)) < 300


def test_too_many_metrics_are_refused():
    many = {f"m{n}": 1.0 for n in range(65)}
    with pytest.raises(FieldError, match=r"Wish.metrics: expected at most 64 entries"):
        decode(Wish, wish(metrics=many))


@given(st.one_of(st.integers(), st.floats(), st.sampled_from([-0.0, 1e308, 2.0**53, 2**63])))
def test_what_is_read_is_in_bound_and_is_what_was_written(value):
    raw = wish(count=value, seconds=value)
    try:
        found = decode(Wish, raw)
    except FieldError:
        return
    assert type(found.count) is int
    assert 0 <= found.count <= MOST
    assert math.isfinite(found.seconds)
    assert from_json(Wish, to_json(found)) == found


def test_a_bound_compares_whole_numbers_exactly():
    """2^53 + 1 is 2^53 as a float64: compared as floats it would pass."""
    assert Range(0, MOST).admits(2**53)
    assert not Range(0, MOST).admits(2**53 + 1)


def test_what_is_built_directly_is_checked_too():
    with pytest.raises(FieldError, match=r"BlobRef.bytes"):
        BlobRef(digest="sha256:" + "0" * 64, bytes=10**400)
    with pytest.raises(FieldError, match=r"BlobRef.bytes"):
        BlobRef(digest="sha256:" + "0" * 64, bytes=-1)
    with pytest.raises(ProtocolError, match="elements"):
        TensorSpec(name="a", shape=(2**30, 2**30), dtype="F32")
    with pytest.raises(ProtocolError, match="extents"):
        TensorSpec(name="a", shape=(1,) * 33, dtype="F32")
    with pytest.raises(FieldError, match=r"Wish.seconds"):
        check_fields(Wish(count=None, seconds=math.inf, metrics={}))


@pytest.mark.parametrize(
    "extent", ["1e999", "-1", "1.0", "true", '"3"', "1" + "0" * 400, "9007199254740993", "null"]
)
@pytest.mark.parametrize("key", ["shape", "data_offsets"])
def test_a_header_with_an_odd_number_is_a_bad_header(tmp_path, key, extent):
    """`int(1e999)` raises OverflowError, which no reader of a received file expected."""
    path = tmp_path / "update"
    write_arrays(path, {"a": np.zeros(3, dtype=np.float32)})
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["a"][key][-1] = "HERE"
    text = json.dumps(header).replace('"HERE"', extent).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    with pytest.raises((IntegrityError, ProtocolError)):
        ArrayFile(path)
