"""The process that sees data and GPU, and no network: `python -m site_agents.worker`.

Reads job folders from standard input, one a line, and answers on standard output when the result
lies in the folder. Ends when its input closes.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from site_agents.worker.work import Worker


def main() -> None:
    """Load the data, say so, then serve jobs until the agent hangs up."""
    parser = argparse.ArgumentParser(prog="python -m site_agents.worker")
    parser.add_argument("--site", required=True)
    parser.add_argument("--data", type=json.loads, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", required=True)
    options = parser.parse_args()
    # Standard output is the protocol's; whatever else is printed goes to the log.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker(
        site=options.site, data=options.data, threads=options.threads, device=options.device
    )
    print(json.dumps(worker.ready()), file=answers)
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        worker.work(folder)
        print(json.dumps({"done": folder.name}), file=answers)


if __name__ == "__main__":
    main()
