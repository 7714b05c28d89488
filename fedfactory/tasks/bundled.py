"""The public data sets that scikit-learn ships, read from its files.

Importing sklearn costs about 0.9 s and all of SciPy; its CSVs are enough. A test holds what is read
here equal to sklearn.datasets.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError


def read_bundled(name: str) -> NDArray[np.float64]:
    """Return the numbers of sklearn/datasets/data/`name` (examples, columns); the label is last.

    Raises:
        DataError: scikit-learn, or the file in it, is not installed.
    """
    found = find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise DataError("the bundled data sets come with scikit-learn, which is not installed")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / name
    if not path.exists():
        raise DataError(f"scikit-learn ships no {name}; expected it at {path}")
    raw = path.read_bytes()
    lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().splitlines()
    header = 0 if name == "digits.csv.gz" else 1
    return np.loadtxt(lines, delimiter=",", skiprows=header)
