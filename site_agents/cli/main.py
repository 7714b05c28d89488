"""The `site-agent` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.main import guarded
from fedfactory.contracts.errors import UnknownNameError

HELP: Final = """\
usage: site-agent COMMAND [ARGUMENT ...]

commands:
  run [key=value ...]   run this site's agent until SIGTERM (keys: site-agent run --help)
  sites [--json]        list the machines of the catalogue

exit codes:
  0 ended as asked   1 something broke here   2 wrong name, value or file   130 interrupted"""
EXAMPLE: Final = """\
example:
  site-agent run site=cesga home=/var/lib/fedfactory gateway.address=hub.example.org:443 \\
      data.source=npz data.path=/data/mine.npz 'policy.tasks=[digits]'"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        return 0 if words else 2
    return guarded(lambda: _dispatch(words[0], words[1:]), program="site-agent")


def _dispatch(command: str, words: Sequence[str]) -> int:
    commands = {"run": _run, "sites": _sites}
    if command not in commands:
        raise UnknownNameError("command", command, commands)
    return commands[command](words)


def _run(arguments: Sequence[str]) -> int:
    parser = Arguments(prog="site-agent run", add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--until-stdin-closes", action="store_true")
    words = parser.parse_intermixed_args(arguments)
    if words.help:
        print(_run_help())
        return 0
    from fedfactory.hydra_config import compose_config, plain
    from site_agents.agent_schema import AgentSchema
    from site_agents.config import agent_config

    # The folder conf/site/ makes `site=` a group to Hydra; here it is the name we go by.
    overrides = [
        f"site.name={word.removeprefix('site=')}" if word.startswith("site=") else word
        for word in words.overrides
    ]
    config = agent_config(plain(compose_config("agent", overrides, AgentSchema)))
    from site_agents.agent import run_agent

    return run_agent(config, until_stdin_closes=words.until_stdin_closes)


def _run_help() -> str:
    from importlib.resources import files

    agent_yaml = (files("fedfactory.conf") / "agent.yaml").read_text(encoding="utf-8")
    _, _, defaults = agent_yaml.partition("_self_\n")
    return "\n".join(
        [
            "usage: site-agent run [key=value ...] [--until-stdin-closes]",
            "",
            "Runs this site's agent until SIGTERM, or with the flag until standard input closes.",
            "",
            "keys and their defaults (??? must be given; type site=NAME for site.name):",
            *(f"  {line}".rstrip() for line in defaults.strip().splitlines()),
            "",
            EXAMPLE,
        ]
    )


def _sites(arguments: Sequence[str]) -> int:
    parser = Arguments(prog="site-agent sites", description="List the machines of the catalogue.")
    parser.add_argument("--json", action="store_true", help="every fact, with source and grade")
    from dataclasses import asdict

    from site_agents.catalogue import known_sites, load_site

    as_json = parser.parse_args(arguments).json
    sites = {name: (machine, load_site(name)) for name, machine in known_sites().items()}
    if as_json:
        print(json.dumps({name: asdict(site) for name, (_, site) in sites.items()}, indent=1))
        return 0
    print(f"{'NAME':<20} {'MACHINE':<20} {'GPU':<8} {'SCHEDULER':<10} HOST")
    for name, (machine, site) in sites.items():
        gpu, scheduler = (site.facts[key].value or "-" for key in ("gpu_model", "scheduler"))
        print(f"{name:<20} {machine:<20} {gpu!s:<8} {scheduler!s:<10} {site.host}, {site.country}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
