"""`fedfactory model get RUN`: fetch a run's model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedfactory.cli.arguments import Arguments, count
from fedfactory.cli.forms import print_json
from fedfactory.cli.operating import add_operating, add_run, connected, meant_run
from fedfactory.contracts.errors import UsageError


def run(words: Sequence[str]) -> int:
    """Fetch the model; return 0 once it lies on disk and is what its digest says."""
    parser = Arguments(prog="fedfactory model", description="Models of runs.")
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="COMMAND", parser_class=Arguments
    )
    told = "fetch a run's model; also while the run goes on"
    get = actions.add_parser("get", help=told, description=told[0].upper() + told[1:] + ".")
    add_run(get)
    get.add_argument("--round", type=count, metavar="N", help="default: the one the run keeps")
    get.add_argument(
        "--out", type=Path, metavar="FILE", help="default: RUN.safetensors, RUN-roundN.safetensors"
    )
    add_operating(get)
    asked = parser.parse_args(words)
    if asked.out is not None:
        _check_file(asked.out.absolute())
    with connected(asked) as client:
        run_id = meant_run(client, asked.run).run_id
        found = client.find_model(run_id, asked.round)
        kept = ", ".join(map(str, found.kept)) or "none"
        if found.model is None:
            which = "no model yet" if asked.round is None else f"no model of round {asked.round}"
            raise UsageError(f"{run_id} keeps {which}; rounds that are kept: {kept}")
        suffix = "" if asked.round is None else f"-round{asked.round}"
        out: Path = asked.out or Path(f"{run_id}{suffix}.safetensors")
        client.download(found.model, out.absolute())
    if asked.json:
        about = {"run_id": run_id, "round": found.round, "kept": list(found.kept)}
        ref = {"digest": found.model.digest, "bytes": found.model.bytes}
        print_json({**about, "file": str(out), **ref})
    elif asked.quiet:
        print(out)
    else:
        which = f"the model of round {found.round}" if found.round else "the initial model"
        print(f"{out}: {which}, {found.model.digest}")
        print(f"rounds whose model is kept: {kept}")
    return 0


def _check_file(out: Path) -> None:
    if out.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{out} cannot be written: --out wants a file, in a folder of yours")
