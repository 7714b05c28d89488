"""Breast cancer: thirty measurements of cell nuclei, malignant 0 or benign 1 (UCI, via sklearn).

Features are standardised by constants declared here, published with the data set long ago: under
differential privacy nothing may be scaled by what a site's own records say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.bundled import read_bundled
from fedfactory.tasks.columns import Classes, numbered
from fedfactory.tasks.examples import DataSchema, Examples
from fedfactory.tasks.network_task import NetworkTask
from fedfactory.tasks.parameters import Parameter

if TYPE_CHECKING:
    from torch import nn

FEATURES: Final = 30
HIDDEN: Final = 32
SCHEMA: Final = DataSchema(
    features=(FEATURES,),
    columns=numbered("x", FEATURES, low=-1e6, high=1e6),
    label=Classes(name="y", names=("0", "1")),
)
# Rounded to four figures; one value a feature, in the order of the file.
# fmt: off
MEANS: Final = np.array([
    14.13, 19.29, 91.97, 654.9, 0.09636, 0.1043,
    0.0888, 0.04892, 0.1812, 0.0628, 0.4052, 1.217,
    2.866, 40.34, 0.007041, 0.02548, 0.03189, 0.0118,
    0.02054, 0.003795, 16.27, 25.68, 107.3, 880.6,
    0.1324, 0.2543, 0.2722, 0.1146, 0.2901, 0.08395,
])
DEVIATIONS: Final = np.array([
    3.521, 4.297, 24.28, 351.6, 0.01405, 0.05277,
    0.07965, 0.03877, 0.02739, 0.007054, 0.2771, 0.5512,
    2.02, 45.45, 0.003, 0.01789, 0.03016, 0.006165,
    0.008259, 0.002644, 4.829, 6.141, 33.57, 568.9,
    0.02281, 0.1572, 0.2084, 0.06567, 0.06181, 0.01805,
])
# fmt: on


class BreastCancer(NetworkTask):
    """Is it benign? `x` holds the measurements as they come, unscaled."""

    name: ClassVar[str] = "breast_cancer"
    parameters: ClassVar[Mapping[str, Parameter]] = {}

    def schema(self, parameters: Mapping[str, Scalar]) -> DataSchema:
        """Thirty measurements, x0 to x29, and y: 0 malignant, 1 benign."""
        del parameters
        return SCHEMA

    def bundled(self, parameters: Mapping[str, Scalar]) -> Examples:
        """Return the 569 samples."""
        del parameters
        table = read_bundled("breast_cancer.csv")
        x = np.ascontiguousarray(table[:, :-1], dtype=np.float32)
        return Examples(x=x, y=table[:, -1].astype(np.int64))

    def network(self, parameters: Mapping[str, Scalar]) -> nn.Module:
        """Build a small MLP behind the fixed scaling."""
        del parameters
        from torch import nn

        from fedfactory.tasks.scaling import Standardise

        return nn.Sequential(
            Standardise(MEANS, DEVIATIONS),
            nn.Linear(FEATURES, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, 2),
        )
