"""What a coordinator is told: defaults, its own file, overrides, and what is wrong with them."""

import pytest

from fedfactory.contracts.errors import UsageError
from fedfactory.coordinator.coordinator_config import COORDINATOR_FILE, load_coordinator_config

OWN = "name: alliance\nlisten: 0.0.0.0:9443\n"


@pytest.fixture
def home(tmp_path):
    (tmp_path / COORDINATOR_FILE).write_text(OWN)
    return tmp_path


def test_the_defaults_hold_where_nothing_else_is_said(home):
    config = load_coordinator_config(home, [])
    assert (config.name, config.host, config.port) == ("alliance", "0.0.0.0", 9443)
    assert config.strategy_classes == "installed"
    assert config.runs_at_once == 4
    assert config.home == home


def test_overrides_come_after_the_file(home):
    (home / COORDINATOR_FILE).write_text(OWN + "queue: 3\nruns_at_once: 2\n")
    config = load_coordinator_config(home, ["queue=7", "listen=localhost:0"])
    assert (config.queue, config.runs_at_once) == (7, 2)
    assert (config.host, config.port) == ("localhost", 0)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("runs_at_once=0", "runs_at_once=0: expected a number from 1"),
        ("max_rounds=x", "'max_rounds=x': max_rounds: expected a whole number"),
        ("certificate_days=.nan", "certificate_days=nan"),
        ("listen=9443", "listen=9443: expected host:port"),
        ("listen=host:99999", "listen=host:99999: expected host:port"),
        ("name=a b", "name=a b: expected"),
        ("strategy_classes=all", "strategy_classes=all: expected installed, or any"),
        ("que=1", "did you mean 'queue'"),
        ("queue", "expected key=value"),
    ],
)
def test_a_wrong_word_is_named(home, word, told):
    with pytest.raises(UsageError) as found:
        load_coordinator_config(home, [word])
    assert told in found.value.public_message


def test_a_home_that_is_none_says_how_to_make_one(tmp_path):
    with pytest.raises(UsageError, match="fedfactory consortium init"):
        load_coordinator_config(tmp_path, [])


def test_a_file_that_is_no_yaml_names_its_line(home):
    (home / COORDINATOR_FILE).write_text("name: alliance\nqueue: [\n")
    with pytest.raises(UsageError, match=r"coordinator\.yaml: line 3 is no YAML"):
        load_coordinator_config(home, [])


def test_a_file_without_a_name_says_so(home):
    (home / COORDINATOR_FILE).write_text("listen: localhost:1\n")
    with pytest.raises(UsageError, match="name: no value and no default"):
        load_coordinator_config(home, [])
