"""Between our files and Flower's records: full models of float tensors; integers stay behind.

Flower's strategies average whatever they are given, and integer buffers come out as floats or make
them fail; so they never see any, and the model's own are put back when its file is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.aggregating.accumulator import AggregationError, cast_back
from fedfactory.coordinator.aggregating.memory_values import Kind, mapping
from fedfactory.wire.arrays import ArrayFile, ArrayWriter

# What a strategy may remember besides plain values (memory_values.py).
RECORDS: Final = (
    *map(mapping, (ArrayRecord, MetricRecord, ConfigRecord, RecordDict)),
    Kind(
        cls=Array,
        parts=lambda array: [array.dtype, array.stype, array.data, *array.shape],
        make=lambda parts: Array(parts[0], tuple(parts[3:]), parts[1], parts[2]),
    ),
)


def read_model(path: Path) -> ArrayRecord:
    """Return the float tensors of a model file."""
    record = ArrayRecord()
    with ArrayFile(path) as file:
        for tensor in file.spec.tensors:
            if tensor.is_float:
                record[tensor.name] = Array(file.read(tensor.name))
    return record


def read_trained(base: Path, delta: Path) -> ArrayRecord:
    """Return the float tensors of a trained model: base plus delta, in the model's dtypes.

    Raises:
        AggregationError: they are not finite.
    """
    record = ArrayRecord()
    with ArrayFile(base) as origin, ArrayFile(delta) as moved:
        for tensor in moved.spec.tensors:
            trained = origin.read(tensor.name)
            with np.errstate(over="ignore"):
                trained += moved.read(tensor.name)
            if not np.isfinite(trained).all():
                raise AggregationError(f"its own model's tensor '{tensor.name}' is not finite")
            record[tensor.name] = Array(trained)
    return record


def write_model(out: Path, record: ArrayRecord, model: Path) -> BlobRef:
    """Write a model in the form of the file `model`, whose integer tensors it keeps.

    Raises:
        AggregationError: other tensors or shapes than the model's, or values that are not finite.
    """
    with ArrayFile(model) as base:
        names = {tensor.name for tensor in base.spec.update_spec().tensors}
        if found := sorted(names.symmetric_difference(record.keys())):
            raise AggregationError(
                f"the strategy's arrays are not the model's float tensors: '{found[0]}' is"
                f" {'missing' if found[0] in names else 'not one of them'}"
            )
        writer = ArrayWriter(out, base.spec)
        try:
            for tensor in base.spec.tensors:
                if tensor.is_float:
                    values = record[tensor.name].numpy()
                    writer.write(cast_back(values, tensor, tensor.shape))
                else:
                    writer.write(base.read(tensor.name))
        except BaseException:
            writer.abandon()
            raise
        return writer.commit()


def same_arrays(record: ArrayRecord, shared: Mapping[str, bytes]) -> bool:
    """Whether a message's arrays are the shared model's (`shared`: serialised data by name)."""
    return record.keys() == shared.keys() and all(
        record[name].data is data or record[name].data == data for name, data in shared.items()
    )
