"""What the bound of an update's norm needs of its base, read alike at the site and coordinator."""

from __future__ import annotations

from pathlib import Path

from fedfactory.contracts.plans import RunTerms
from fedfactory.contracts.update_norms import Base
from fedfactory.wire.arrays import ArrayFile, norm_l2


def read_base(path: Path, terms: RunTerms) -> Base:
    """Return the facts of a base model; its values are read only where the terms' rule needs them.

    Raises:
        NotFiniteError: the rule needs the norm, and a tensor has none.
        IntegrityError, ProtocolError: not a whole file of arrays.
    """
    needed = terms.max_update_norm_l2 is None and terms.privacy is None
    with ArrayFile(path) as file:
        elements = sum(tensor.elements for tensor in file.spec.tensors if tensor.is_float)
        return Base(norm_l2=norm_l2(file) if needed else 0.0, elements=elements)
