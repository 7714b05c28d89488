"""The `site-agent` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from fedfactory.cli.main import guarded
from fedfactory.contracts.errors import UnknownNameError

HELP = """\
usage: site-agent COMMAND [ARGUMENT ...]

commands:
  run [key=value ...]   run this site's agent until SIGTERM (keys: conf/agent.yaml)
  sites [--json]        list the machines of the catalogue

example:
  site-agent run site=cesga home=/var/lib/fedfactory gateway.address=hub.example.org:443 \\
      data.source=npz data.path=/data/mine.npz 'policy.tasks=[digits]'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        return 0 if words else 2
    commands = {"run": _run, "sites": _sites}
    if words[0] not in commands:
        return guarded(lambda: _unknown(words[0], list(commands)))
    return guarded(lambda: commands[words[0]](words[1:]))


def _unknown(word: str, known: list[str]) -> int:
    raise UnknownNameError("command", word, known)


def _run(words: Sequence[str]) -> int:
    if "-h" in words or "--help" in words:
        print(HELP)
        return 0
    from fedfactory.hydra_config import compose_config, plain
    from site_agents.config import AgentSchema, agent_config

    tethered = "--until-stdin-closes" in words
    # The folder conf/site/ makes `site=` a group to Hydra; here it is the name we go by.
    overrides = [
        word.replace("site=", "site.name=", 1) if word.startswith("site=") else word
        for word in words
        if word != "--until-stdin-closes"
    ]
    config = agent_config(plain(compose_config("agent", overrides, AgentSchema)))
    from site_agents.agent import run_agent

    return run_agent(config, until_stdin_closes=tethered)


def _sites(words: Sequence[str]) -> int:
    from site_agents.catalogue import known_sites, load_site

    rows = []
    for name, machine in known_sites().items():
        found = load_site(name)
        gpu = found.facts["gpu_model"].value
        rows.append({"name": name, "machine": machine, "host": found.host, "gpu": gpu})
    if "--json" in words:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        print(f"{row['name']:<20} {row['machine']:<20} {row['gpu'] or '-':<8} {row['host']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
