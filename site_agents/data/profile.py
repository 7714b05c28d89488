"""What a source looks like in its own form, for the site's administrator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnProfile:
    """`form` is its type, as in 'double'; `missing` counts its missing values, None: not known."""

    name: str
    form: str
    missing: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How many records there are, and their columns."""

    records: int
    columns: tuple[ColumnProfile, ...]
