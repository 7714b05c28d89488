"""The process that sees data and GPU, and no network: `python -m site_agents.worker`.

Reads job folders from standard input, one a line, and answers on standard output when the result
lies in the folder. Ends when its input closes, also in the middle of a job: its agent is gone.
"""

import argparse
import json
import logging
import os
import queue
import sys
import threading
from pathlib import Path

from fedfactory.contracts.errors import FedfactoryError
from site_agents.worker.work import Worker


def main() -> int:
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
    jobs: queue.SimpleQueue[Path] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    worker = Worker(
        site=options.site, data=options.data, threads=options.threads, device=options.device
    )
    try:
        ready = worker.ready()
    except FedfactoryError as error:
        logging.getLogger("site_agents.worker").error("not ready: %s", error)  # noqa: TRY400
        return error.exit_code
    print(json.dumps(ready), file=answers)
    while True:
        folder = jobs.get()
        worker.work(folder)
        print(json.dumps({"done": folder.name}), file=answers)


def _read_jobs(jobs: "queue.SimpleQueue[Path]") -> None:
    for line in sys.stdin:
        jobs.put(Path(line.rstrip("\n")))
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
