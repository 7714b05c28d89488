"""Isolates this process, then runs a module in it: `python -m fedfactory.isolation ...`.

`NETWORK cpu|gpu MODULE ARG...` runs the module as `python -m MODULE ARG...` would; NETWORK is a
value of worker.network, or where_possible. `refusals` prints as JSON which mechanisms the kernel
refuses here.

It comes first in its process: no thread is started and nothing is open but the standard streams.
"""

from __future__ import annotations

import json
import runpy
import sys
from typing import cast

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.isolation.enforcing import find_refusals, isolate
from fedfactory.isolation.mechanism import MECHANISMS, WHERE_POSSIBLE, Network, choose
from fedfactory.isolation.sharing import share_through_proc


def main() -> None:
    """Do what the command line says."""
    if sys.argv[1:] == ["refusals"]:
        print(json.dumps(find_refusals()))  # noqa: T201  its answer
        return
    network, device, module, *words = sys.argv[1:]
    _isolate(None if network == WHERE_POSSIBLE else cast("Network", network), gpu=device == "gpu")
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _isolate(network: Network | None, *, gpu: bool) -> None:
    try:
        found = choose(network, {} if network == "not_enforced" else find_refusals())
        isolate(found.mechanism, gpu=gpu)
        if found.mechanism != "none":
            share_through_proc()
    except (FedfactoryError, OSError) as error:
        sys.exit(f"this process cannot be isolated: {error}")
    if found.mechanism != MECHANISMS[0]:
        print(f"network: {found.sentence}", file=sys.stderr)  # noqa: T201  it has no log yet


if __name__ == "__main__":
    main()
