"""The contract of data sources, for ours and for those of other packages (group fedfactory.data).

Subclass SourceContract and override the `case` fixture with a SourceCase of your kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from fedfactory.contracts.errors import DataError, UsageError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.examples import Examples, SiteData
from fedfactory.tasks.table import load_task
from site_agents.data.source import Source
from site_agents.data.sources import open_source

NAME: Final = "mine"
MARKER: Final = "Q7planted-marker"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCase:
    """Data that fits a task, at least 100 records, no two with equal features.

    `root` holds all its files. `append` adds records that fit, `spoil` makes one record hold a text
    that fits nothing, `lose` takes the data away. `missing` is what the error then names.
    """

    options: Mapping[str, Any]
    task: str
    parameters: Mapping[str, Scalar]
    records: int
    root: Path
    append: Callable[[], None]
    spoil: Callable[[str], None]
    lose: Callable[[], None]
    missing: str


class SourceContract:
    """What a worker and an administrator rely on."""

    @pytest.fixture
    def case(self, tmp_path: Path) -> SourceCase:
        """The data to try with."""
        raise AssertionError(f"say what your data are, below {tmp_path}")

    def test_every_record_is_on_one_side(self, case: SourceCase) -> None:
        """Train and test hold all records between them, in the schema's form."""
        data = _load(case)
        schema = load_task(case.task).data_schema(case.parameters)
        assert schema is not None
        assert len(data.train) + len(data.test) == case.records
        assert 0.05 < len(data.test) / case.records < 0.4
        for part in (data.train, data.test):
            assert part.x.shape[1:] == schema.features
            assert part.x.dtype == np.float32
            assert part.y.dtype == (np.float32 if schema.classes is None else np.int64)
            assert np.array_equal(part.take(np.array([2, 0])).x, part.x[[2, 0]])  # by index
        assert not _rows(data.train) & _rows(data.test)

    def test_the_split_is_the_lineages(self, case: SourceCase) -> None:
        """The same whenever it is opened, another for another lineage."""
        first = _rows(_load(case).test)
        assert first == _rows(_load(case).test)
        assert first != _rows(_load(case, lineage="another").test)

    def test_appended_records_move_no_other(self, case: SourceCase) -> None:
        """Whoever was in the test part stays there."""
        before = _load(case)
        case.append()
        after = _load(case)
        assert len(after.train) + len(after.test) > case.records
        assert _rows(before.train) <= _rows(after.train)
        assert _rows(before.test) <= _rows(after.test)

    def test_the_version_names_the_content(self, case: SourceCase) -> None:
        """The same for the same data, another once they changed, which the stamp shows too."""
        source = _open(case)
        version, stamp = source.version(), source.stamp()
        assert version == _open(case).version()
        assert stamp == _open(case).stamp()
        assert source.fingerprint().startswith("sha256:")
        case.append()
        assert _open(case).version() != version
        if stamp is not None:
            assert _open(case).stamp() != stamp

    def test_nothing_is_written(self, case: SourceCase) -> None:
        """Reading leaves every file as it was."""
        before = _state(case.root)
        source = _open(case)
        source.version()
        source.profile()
        _load(case)
        assert _state(case.root) == before

    def test_the_profile_counts_all_records(self, case: SourceCase) -> None:
        """As many as there are, and columns with names."""
        profile = _open(case).profile()
        assert profile.records == case.records
        assert all(column.name and column.form for column in profile.columns)

    def test_an_option_that_it_does_not_have(self, case: SourceCase) -> None:
        """Named with the source's name."""
        with pytest.raises(UsageError, match=rf"data\.{NAME}\.nonsense"):
            open_source(NAME, {**case.options, "nonsense": 1}, "lineage")

    def test_data_that_are_gone(self, case: SourceCase) -> None:
        """A DataError that names them, once they are asked for."""
        case.lose()
        source = _open(case)
        for ask in (source.version, source.profile, lambda: _load(case)):
            with pytest.raises(DataError) as caught:
                ask()
            assert case.missing in caught.value.public_message

    def test_a_record_that_fits_nothing_counts_as_null_with_privacy(self, case: SourceCase) -> None:
        """It is counted, the form is as good as before, and no other record moves."""
        whole = _load(case)
        case.spoil(MARKER)
        source, task = _open(case), load_task(case.task)
        schema = task.data_schema(case.parameters)
        assert schema is not None
        source.check_form(schema)
        found = source.load_privately(task, case.parameters, by_unit=False)
        for before, after in (
            (whole.train, found.data.train),
            (whole.test, found.data.test),
        ):
            assert _rows(after) <= _rows(before)
            assert len(_rows(before) - _rows(after)) <= 1
        assert len(found.data.train) + len(found.data.test) == case.records - 1
        assert sum(fault.count for fault in found.faults) >= 1
        assert all(MARKER not in fault.sentence for fault in found.faults)

    def test_the_form_is_looked_at_before_any_record(self, case: SourceCase) -> None:
        """Data that are gone are found without reading one."""
        fits = load_task(case.task).data_schema(case.parameters)
        assert fits is not None
        _open(case).check_form(fits)
        case.lose()
        with pytest.raises(DataError):
            _open(case).check_form(fits)

    def test_no_error_shows_a_value(self, case: SourceCase) -> None:
        """Not in its message, and not in its diagnostic."""
        case.spoil(MARKER)
        with pytest.raises(DataError) as caught:
            _load(case)
        assert MARKER not in f"{caught.value} {caught.value.diagnostic}"


def _open(case: SourceCase, lineage: str = "lineage") -> Source:
    return open_source(NAME, case.options, lineage)


def _load(case: SourceCase, lineage: str = "lineage") -> SiteData:
    return _open(case, lineage).load(load_task(case.task), case.parameters)


def _rows(examples: Examples) -> set[bytes]:
    return {row.tobytes() for row in examples.x}


def _state(root: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
