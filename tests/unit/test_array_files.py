"""Every dtype that a model may have, in either byte order, is what safetensors' library reads."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedfactory.contracts.model import DTYPES
from fedfactory.wire.arrays import read_arrays, write_arrays


@pytest.mark.parametrize("order", ["<", ">", "="])
@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_is_written_and_read(tmp_path, code, order):
    dtype = np.dtype(DTYPES[code][0])
    values = np.asarray([[0, 1, 1], [1, 0, 1]]).astype(dtype.newbyteorder(order))
    write_arrays(tmp_path / "file", {"a": values, "b": values.T, "c": values[:0]})
    ours, theirs = read_arrays(tmp_path / "file"), load_file(tmp_path / "file")
    for found in (ours, theirs):
        assert found["a"].dtype == dtype
        assert np.array_equal(found["a"], values)
        assert np.array_equal(found["b"], values.T)
        assert found["c"].shape == (0, 3)
