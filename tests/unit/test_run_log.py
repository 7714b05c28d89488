"""A run's serverapp.log: what its process said, and what ended it."""

import logging

import pytest

from fedfactory.contracts.errors import IntegrityError
from fedfactory.coordinator.running import run_log as module
from fedfactory.coordinator.running.run_log import RUN_LOG, last_word, run_log


def test_what_is_said_and_what_ends_it_is_written(tmp_path):
    assert last_word(tmp_path / RUN_LOG) == ""
    with pytest.raises(IntegrityError), run_log(tmp_path):
        _break_down()
    told = (tmp_path / RUN_LOG).read_text()
    assert "INFO round 3 begins" in told
    assert "Traceback (most recent call last)" in told
    assert last_word(tmp_path / RUN_LOG).endswith("ERROR IntegrityError: the journal is damaged")


def _break_down():
    logging.getLogger("fedfactory.runner").info("round 3 begins")
    raise IntegrityError("the journal is damaged")


def test_outside_the_block_nothing_is_written_and_the_next_process_goes_on_below(tmp_path):
    with run_log(tmp_path):
        pass
    before = (tmp_path / RUN_LOG).read_text()
    logging.getLogger("fedfactory.runner").error("of another run")
    assert (tmp_path / RUN_LOG).read_text() == before
    with run_log(tmp_path):
        pass
    assert (tmp_path / RUN_LOG).read_text().startswith(before)


def test_the_log_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    with run_log(tmp_path):
        for number in range(2_000):
            logging.getLogger("fedfactory.runner").info("line %d", number)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 10_000
