"""How local mode splits one data set among its sites: pure, seeded, the same for every strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError, UnknownNameError
from fedfactory.tasks.seeds import derive_seed

MIN_EXAMPLES: Final = 10
MAX_DRAWS: Final = 100
TEST_SHARE: Final = 0.2
Indices = NDArray[np.intp]
KINDS: Final = ("dirichlet", "iid", "labels")


def split(
    labels: NDArray[np.int64], sites: Sequence[str], partition: Mapping[str, Any], seed: int
) -> dict[str, Indices]:
    """Return each site's examples as sorted indices: disjoint, and enough at every site.

    Raises:
        DataError: too few examples for a share of at least MIN_EXAMPLES a site.
    """
    sites = sorted(sites)
    count = len(sites)
    if len(labels) < MIN_EXAMPLES * count:
        raise DataError(
            f"{len(labels)} examples are too few for {count} sites: each needs {MIN_EXAMPLES}"
        )
    kind = partition["kind"]
    if kind == "iid":
        shares = _iid(len(labels), count, _generator(seed, "iid"))
    elif kind == "dirichlet":
        shares = _dirichlet(labels, count, float(partition["alpha"]), seed)
    elif kind == "labels":
        shares = _by_labels(labels, count, int(partition["labels_per_site"]), seed)
    else:
        raise UnknownNameError("partition", str(kind), KINDS)
    for site, share in zip(sites, shares, strict=True):
        if len(share) < MIN_EXAMPLES:
            raise DataError(
                f"site {site} would hold {len(share)} examples, each needs {MIN_EXAMPLES}:"
                " use a larger partition.alpha or labels_per_site, fewer sites, or more data"
            )
    return {site: np.sort(share) for site, share in zip(sites, shares, strict=True)}


def train_and_test(share: Indices, site: str, seed: int) -> tuple[Indices, Indices]:
    """Split one site's share: four fifths to train on, one fifth, at least one, to test on."""
    shuffled = _generator(seed, "test", site).permutation(share)
    tests = max(1, round(TEST_SHARE * len(share)))
    return np.sort(shuffled[tests:]), np.sort(shuffled[:tests])


def _generator(seed: int, *purpose: str | int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, "partition", *purpose))


def _iid(total: int, count: int, generator: np.random.Generator) -> list[Indices]:
    return np.array_split(generator.permutation(total), count)


def _dirichlet(labels: NDArray[np.int64], count: int, alpha: float, seed: int) -> list[Indices]:
    """Spread each class by a Dirichlet draw (Hsu et al. 2019); draw again while a site starves."""
    shares: list[Indices] = []
    for draw in range(MAX_DRAWS):
        generator = _generator(seed, "dirichlet", draw)
        parts: list[list[Indices]] = [[] for _ in range(count)]
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            weights = generator.dirichlet(np.full(count, alpha))
            cuts = np.round(np.cumsum(weights)[:-1] * len(members)).astype(int)
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.append(piece)
        shares = [np.concatenate(part) for part in parts]
        if min(len(share) for share in shares) >= MIN_EXAMPLES:
            break
    return shares


def _by_labels(labels: NDArray[np.int64], count: int, per_site: int, seed: int) -> list[Indices]:
    """Deal the classes round to the sites, `per_site` each; sites of one class share it equally."""
    classes = np.unique(labels)
    if per_site > len(classes):
        raise DataError(
            f"partition.labels_per_site={per_site}: there are {len(classes)} classes in the data"
        )
    generator = _generator(seed, "labels")
    dealt = np.resize(generator.permutation(classes), count * per_site)
    holders = {
        c: [i for i in range(count) if c in dealt[i * per_site :][:per_site]] for c in classes
    }
    parts: list[list[Indices]] = [[] for _ in range(count)]
    for label, sites in holders.items():
        members = generator.permutation(np.flatnonzero(labels == label))
        for site, piece in zip(sites, np.array_split(members, max(1, len(sites))), strict=False):
            parts[site].append(piece)
    return [np.concatenate(part) for part in parts]
