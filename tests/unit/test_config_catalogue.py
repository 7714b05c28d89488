"""The site catalogue: sourced facts, unknown kept null, aliases that lead somewhere."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from fedfactory.config import run_config
from fedfactory.contracts.errors import EnvironmentFailedError, UnknownNameError
from fedfactory.hydra_config import compose_config, plain
from fedfactory.identity.roles import Peer, Role
from fedfactory.run_schema import CHOICE_SCHEMAS, RunSchema
from site_agents import catalogue
from site_agents.catalogue import (
    FACTS,
    GRADES,
    STUB_FACTS,
    check_site_name,
    known_sites,
    load_site,
    machines,
    site_names,
    site_of,
    site_text,
)
from site_agents.cli.main import main

FILLED = {
    *("bsc-marenostrum5", "cineca-leonardo", "lumi-g", "luxprovide-meluxina", "naiss-arrhenius"),
    *("naiss-berzelius", "hlrs-hunter", "it4i-karolina", "surf-snellius", "cyfronet-athena"),
    *("cyfronet-helios", "cesga-finisterrae3", "jsc-jupiter", "asc-musica", "discoverer-plus"),
    "izum-vega",
}
STUBS = {
    *("grnet-daedalus", "litai", "ro-aif", "piast", "genci-alice-recoque", "it4i-karolaina"),
    *("cineca-lisa", "lumi-ai", "naiss-mimer", "luxprovide-meluxina-ai", "cyfronet-gaia"),
    *("hlrs-hammerhai", "cesga-1healthai", "surf-nlaif"),
}
# Every AI Factory, and the machine its name stands for today.
FACTORIES = {
    "bsc": "bsc-marenostrum5",
    "it4lia": "cineca-leonardo",
    "lumi": "lumi-g",
    "meluxina-ai": "luxprovide-meluxina",
    "mimer": "naiss-arrhenius",
    "hammerhai": "hlrs-hunter",
    "pharos": "grnet-daedalus",
    "ai-at": "asc-musica",
    "ai2f": "genci-alice-recoque",
    "brain": "discoverer-plus",
    "jaif": "jsc-jupiter",
    "piast": "piast",
    "slaif": "izum-vega",
    "1healthai": "cesga-finisterrae3",
    "czai": "it4i-karolina",
    "gaia": "cyfronet-athena",
    "litai": "litai",
    "nlaif": "surf-snellius",
    "ro-aif": "ro-aif",
}
HOSTS = {
    "cineca": "cineca-leonardo",
    "csc": "lumi-g",
    "luxprovide": "luxprovide-meluxina",
    "naiss": "naiss-arrhenius",
    "hlrs": "hlrs-hunter",
    "grnet": "grnet-daedalus",
    "it4i": "it4i-karolina",
    "surf": "surf-snellius",
    "cyfronet": "cyfronet-athena",
    "ici": "ro-aif",
    "cesga": "cesga-finisterrae3",
    "psnc": "piast",
    "jsc": "jsc-jupiter",
    "genci": "genci-alice-recoque",
    "cea": "genci-alice-recoque",
    "asc": "asc-musica",
    "sofia-tech-park": "discoverer-plus",
    "izum": "izum-vega",
}


def composed_sites(*overrides: str) -> tuple[str, ...]:
    composed = compose_config("run", overrides, RunSchema, CHOICE_SCHEMAS)
    return run_config(plain(composed), OmegaConf.to_yaml(composed)).sites


def test_every_machine_is_filled_or_a_stub():
    stubs = {name: load_site(name).stub for name in machines()}
    assert {name for name, stub in stubs.items() if not stub} == FILLED
    assert {name for name, stub in stubs.items() if stub} == STUBS


@pytest.mark.parametrize(("name", "machine"), {**FACTORIES, **HOSTS}.items())
def test_a_site_is_known_by_its_ai_factory_and_its_host(name, machine):
    assert known_sites()[name] == load_site(name).machine == machine


@pytest.mark.parametrize("name", site_names())
def test_every_name_leads_to_a_machine(name):
    site = load_site(name)
    assert site.machine == known_sites()[name]
    assert name == site.machine or name in site.aliases
    assert list(site.aliases) == sorted(site.aliases)
    assert tuple(site.facts) == (STUB_FACTS if site.stub else FACTS)  # the same questions for all
    assert site.stub or site.docs
    assert site.site
    assert site.host
    assert site.country == site.country.upper()
    assert len(site.country) == 2
    assert site.read_on == "2026-11-20"
    assert check_site_name(Peer(role=Role.SITE, name=name).name) == name  # agents may go by it


def test_every_name_may_take_part_in_a_federation():
    assert composed_sites(f"federation.sites=[{','.join(site_names())}]") == site_names()


@pytest.mark.parametrize("name", sorted(FILLED | STUBS))
def test_every_fact_has_a_source_and_a_grade_and_nothing_is_verified_yet(name):
    for key, fact in load_site(name).facts.items():
        assert (fact.value is None) == (fact.source is None) == (fact.grade is None), key
        assert fact.value is None or fact.grade in GRADES, key
        assert fact.value is None or fact.source, key
        assert fact.verified_on is None, key


@pytest.mark.parametrize("name", sorted(STUBS))
def test_a_stub_writes_down_only_what_is_known(name):
    facts = yaml.safe_load(site_text(name)).items()
    assert {key for key, value in facts if value is None} <= {"docs"}


def test_the_page_about_sites_tells_every_fact_grade_and_federation():
    page = (Path(__file__).parents[2] / "docs" / "sites.md").read_text()
    federations = (files("fedfactory.conf") / "federation").iterdir()
    names = [entry.name.removesuffix(".yaml") for entry in federations]
    for word in (*STUB_FACTS, *GRADES, *names, *catalogue.HEADS):
        assert f"`{word}`" in page, word


def test_names_are_distinct_whatever_their_case():
    assert len({name.casefold().replace("_", "-") for name in site_names()}) == len(site_names())


def test_what_the_facts_leave_unknown_is_null():
    cesga = load_site("cesga").facts
    for key in ("cpu_architecture", "gpu_memory_gb", "gpu_partitions_max_minutes"):
        assert cesga[key].value is None
    assert cesga["gpus_total"].grade == "third_party"
    assert load_site("cyfronet-helios").facts["gpus_per_node"].value is None  # only inferred
    assert load_site("it4i-karolina").facts["gpu_memory_gb"].value is None  # only told per node
    assert load_site("luxprovide").facts["gpu_model"].value is None  # not confirmed
    assert load_site("bsc").facts["gpu_partitions_max_minutes"].value is None  # guides disagree
    assert load_site("lumi").facts["gpu_partitions_max_minutes"].value == {
        "standard-g": 2880,
        "small-g": 4320,
        "dev-g": 180,
    }
    assert load_site("naiss-berzelius").facts["sensitive_data"].value == "forbidden"
    assert load_site("hlrs").facts["scheduler"].value == "pbs"


def test_the_federations_of_ai_factories():
    seven = composed_sites("federation=first_seven")
    last = composed_sites("federation=third_wave")
    every = composed_sites("federation=all_ai_factories")
    assert len(seven) == 7
    assert len(last) == 6
    assert set(every) == set(FACTORIES)
    assert set(seven) | set(last) < set(every)
    assert not set(seven) & set(last)
    machines = [known_sites()[name] for name in every]
    assert len(set(machines)) == len(machines)  # nobody takes part twice
    assert len({load_site(name).site for name in every}) == len(every)


@pytest.mark.parametrize("name", ["demo", "first_seven", "third_wave", "all_ai_factories"])
def test_a_federation_says_in_its_file_what_it_is(name):
    text = (files("fedfactory.conf") / "federation" / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert f"federation/{name}" in CHOICE_SCHEMAS
    assert composed_sites(f"federation={name}") == tuple(sorted(yaml.safe_load(text)["sites"]))


def test_names():
    assert check_site_name("lumi") == "lumi"
    assert check_site_name("site-01") == "site-01"
    for name in ("lum", "site-1", "site-x", "../lumi", "", "LUMI"):
        with pytest.raises(UnknownNameError, match="cesga, cesga-1healthai"):
            check_site_name(name)
    with pytest.raises(UnknownNameError):
        load_site("site-01")


HEADS = {"site": "s", "host": "h", "country": "ES", "docs": "d", "aliases": [], "read_on": "r"}
STUB = {**HEADS, "status": "stub"}
FACT = {"value": 1, "source": "s", "grade": "press", "verified_on": None}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"site": "s"}, "piast.yaml: lacks aliases, host, country, docs, read_on"),
        ({**HEADS, "status": "live"}, "piast.yaml: status: live: expected stub"),
        (HEADS, "piast.yaml: lacks system, nodes"),
        ({**STUB, "aliases": "psnc"}, "piast.yaml: aliases: psnc: expected a list of names"),
        ({**STUB, "aliases": [1]}, "piast.yaml: aliases: [1]: expected a list of names"),
        ({**STUB, "aliases": None}, "piast.yaml: aliases: None: expected a list of names"),
        ({**STUB, "gpu": FACT}, "piast.yaml: gpu is no fact; known: system"),
        ({**STUB, "nodes": {"value": 1}}, "piast.yaml: nodes: expected null or {value, grade"),
        ({**STUB, "nodes": "A100"}, "piast.yaml: nodes: expected null or {value, grade"),
        ({**STUB, "nodes": {**FACT, "source": None}}, "expected a value, a source and a grade"),
        ({**STUB, "nodes": {**FACT, "source": ""}}, "expected a value, a source and a grade"),
        ({**STUB, "nodes": {**FACT, "grade": None}}, "expected a value, a source and a grade"),
        ({**STUB, "nodes": {**FACT, "grade": "heard"}}, "a grade of official, press"),
        ({**STUB, "nodes": {**FACT, "value": None}}, "or null for what is unknown"),
        ({**STUB, "nodes": {**FACT, "verified_on": "today"}}, "verified_on: today: expected null"),
        ({**STUB, "nodes": {**FACT, "verified_on": 2026}}, "verified_on: 2026: expected null"),
        ({**STUB, "nodes": {**FACT, "grade": "on_site"}}, "grade on_site needs one"),
    ],
)
def test_a_bad_file_is_named(raw, message):
    with pytest.raises(EnvironmentFailedError) as caught:
        site_of("piast", raw)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "asc-musica.yaml: expected keys and values"),
        ("MUSICA", "asc-musica.yaml: expected keys and values"),
        ("site: [", "asc-musica.yaml: while parsing a flow"),
        ("site: AI:AT: x", "line 1, column 12"),
    ],
)
def test_a_file_that_is_no_yaml_is_named(text, message, monkeypatch):
    monkeypatch.setattr(catalogue, "site_text", lambda machine: text)
    catalogue._read.cache_clear()
    with pytest.raises(EnvironmentFailedError, match=message):
        catalogue._read("asc-musica")


def test_no_two_machines_share_a_name(monkeypatch):
    monkeypatch.setattr(catalogue, "_read", lambda machine: {"aliases": ["poznan"]})
    known_sites.cache_clear()
    with pytest.raises(
        EnvironmentFailedError, match=r"bsc-marenostrum5\.yaml: alias 'poznan': asc"
    ):
        known_sites()


def test_listing(capsys):
    assert main(["sites"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(FILLED | STUBS)
    golden = Path(__file__).parents[1] / "golden" / "sites_head.txt"
    assert "\n".join(lines[:12]) + "\n" == golden.read_text()


def test_one_machine_with_every_fact(capsys):
    assert main(["sites", "mimer"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        "naiss-arrhenius: MIMER, NAISS/Linkoping, SE\nother names: mimer, naiss"
    )
    for key in FACTS:
        assert key in shown
    assert "scheduler: slurm\n    third_party: unnamed guide; not seen on site" in shown
    assert "sources read on: 2026-11-20" in shown
    assert "host known" not in shown
    assert main(["sites", "cyfronet-athena"]) == 0
    assert "gpu_partitions_max_minutes: plgrid-gpu-a100 2880 min\n" in capsys.readouterr().out


def test_a_stub_says_what_it_is(capsys):
    assert main(["sites", "ai2f"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "genci-alice-recoque: AI2F, GENCI/CEA, FR"
    assert shown[1] == "host known, machine unknown"
    assert "expected_live: about 2027" in shown


def test_an_unknown_machine(capsys):
    assert main(["sites", "lum"]) == 2
    assert "unknown site 'lum'; known: 1healthai, " in capsys.readouterr().err


def test_listing_as_json_keeps_sources(capsys):
    assert main(["sites", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == FILLED | STUBS
    assert listed["lumi-g"]["aliases"] == ["csc", "lumi", "lumi-aif"]
    assert listed["lumi-g"]["facts"]["stack"] == {
        "value": "rocm",
        "source": "docs.lumi-supercomputer.eu",
        "grade": "official",
        "verified_on": None,
    }
    assert main(["sites", "--json", "pharos"]) == 0
    (one,) = json.loads(capsys.readouterr().out).values()
    assert one["stub"]
    assert one["docs"] is None
