"""The site catalogue: sourced facts, unknown kept null, aliases that lead somewhere."""

from __future__ import annotations

import json

import pytest

from fedfactory.contracts.errors import EnvironmentFailedError, UnknownNameError
from site_agents import catalogue
from site_agents.catalogue import check_site_name, known_sites, load_site, site_names
from site_agents.cli.main import main


def test_machines_and_aliases():
    assert known_sites() == {
        "cesga": "cesga-finisterrae3",
        "cesga-finisterrae3": "cesga-finisterrae3",
        "cyfronet": "cyfronet-athena",
        "cyfronet-athena": "cyfronet-athena",
        "cyfronet-helios": "cyfronet-helios",
        "lumi": "lumi-g",
        "lumi-g": "lumi-g",
    }


@pytest.mark.parametrize("name", site_names())
def test_every_fact_has_its_form_and_nothing_is_verified_yet(name):
    site = load_site(name)
    assert site.machine == known_sites()[name]
    facts = site.facts
    assert set(facts) == set(load_site("lumi").facts)  # the same questions for every machine
    for key, fact in facts.items():
        assert (fact.value is None) == (fact.source is None) == (fact.grade is None), key
        assert fact.verified_on is None, key


def test_what_the_facts_leave_unknown_is_null():
    cesga = load_site("cesga").facts
    for key in ("cpu_architecture", "gpu_memory_gb", "gpu_partitions_max_h", "compute_egress"):
        assert cesga[key].value is None
    assert cesga["gpus_total"].grade == "third_party"
    assert load_site("cyfronet-helios").facts["gpus_per_node"].value is None  # only inferred
    assert load_site("lumi").facts["gpu_partitions_max_h"].value == {
        "standard-g": 48,
        "small-g": 72,
        "dev-g": 3,
    }


def test_names():
    assert check_site_name("lumi") == "lumi"
    assert check_site_name("site-01") == "site-01"
    for name in ("lum", "site-1", "site-x", "../lumi", "", "LUMI"):
        with pytest.raises(UnknownNameError, match="cesga, cesga-finisterrae3"):
            check_site_name(name)
    with pytest.raises(UnknownNameError):
        load_site("site-01")


HEADS = {"machine": "m", "site": "s", "host": "h", "country": "ES", "docs": "d"}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"machine": "m"}, "lumi.yaml: lacks site, host, country, docs"),
        ({**HEADS, "gpu": {"value": 1}}, "lumi.yaml: gpu: expected {value, source"),
        ({**HEADS, "gpu": "A100"}, "lumi.yaml: gpu: expected {value, source"),
        (
            {**HEADS, "gpu": {"value": 1, "source": None, "grade": None, "verified_on": None}},
            "needs a source and a grade",
        ),
        (
            {**HEADS, "gpu": {"value": 1, "source": "s", "grade": "heard", "verified_on": None}},
            "needs a source and a grade",
        ),
        (
            {**HEADS, "gpu": {"value": None, "source": "s", "grade": "press", "verified_on": None}},
            "what is unknown has neither",
        ),
    ],
)
def test_a_bad_file_is_named(raw, message, monkeypatch):
    monkeypatch.setattr(catalogue, "_read", lambda _: dict(raw))
    with pytest.raises(EnvironmentFailedError) as caught:
        load_site("lumi")
    assert message in str(caught.value)


def test_listing(capsys):
    assert main(["sites"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "MACHINE", "GPU", "SCHEDULER", "HOST"]
    assert len(lines) == 1 + len(site_names())
    assert "MI250X" in lines[-1]


def test_listing_as_json_keeps_sources(capsys):
    assert main(["sites", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == set(site_names())
    assert listed["lumi"]["facts"]["stack"] == {
        "value": "rocm",
        "source": "docs.lumi-supercomputer.eu",
        "grade": "official",
        "verified_on": None,
    }
