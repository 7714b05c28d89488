"""The process that sees data and GPU, and no network: `python -m site_agents.worker`.

Its first line of standard input is its settings, each later one a request in JSON: a job's folder,
a trial of private work, or a source whose form, or counts, are asked for. It answers on standard
output; a job's result then lies in its folder. Ends when its input closes, also in the middle of a
job: its agent is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedfactory.contracts.codec import decode, encode
from fedfactory.contracts.errors import FedfactoryError
from fedfactory.tasks.task import UnstableKernelsError
from site_agents.jobs.job import JobTrial
from site_agents.jobs.settings import SourceOptions, WorkerSettings
from site_agents.worker.work import Worker, log


def main() -> None:
    """Serve requests until the agent hangs up."""
    # The agent is the only caller; the words are for people who look at the list of processes.
    parser = argparse.ArgumentParser(prog="python -m site_agents.worker")
    parser.add_argument("--site")
    parser.add_argument("--device")
    parser.parse_args()
    # Standard output is the protocol's; whatever else is printed goes to the log.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    settings = _settings(json.loads(sys.stdin.readline()))
    requests: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    worker = Worker(settings)
    print(json.dumps({"ready": True}), file=answers)
    if settings.sources:
        import torch  # noqa: F401  the first order should not wait for it
    while True:
        print(json.dumps(_answer(worker, requests.get())), file=answers)


def _answer(worker: Worker, request: Mapping[str, Any]) -> Mapping[str, Any]:
    if "rehearse" in request:
        return _rehearse(worker, decode(JobTrial, request["rehearse"]))
    if "job" in request:
        folder = Path(request["job"])
        worker.work(folder)
        return {"done": folder.name}
    source = request["source"]
    asked = (source, request["task"], request["parameters"])
    try:
        if request["ask"] == "form":
            worker.check_form(*asked)
            return {"form": "fits"}
        facts = worker.describe(*asked)
    except FedfactoryError as error:
        log.error("source '%s': %s", source, error)
        return {"failure": "no_data"}
    except Exception as error:  # noqa: BLE001  the boundary: a worker answers every request
        log.error("source '%s': %s", source, type(error).__name__)
        return {"failure": "no_data"}
    return {"facts": encode(facts)}


def _rehearse(worker: Worker, trial: JobTrial) -> Mapping[str, Any]:
    # No record is touched here: a reason may be written down whole.
    try:
        passes = worker.rehearse(trial)
    except UnstableKernelsError as error:
        return {"failure": "not_repeatable", "finding": str(error)}
    except FedfactoryError as error:
        log.warning("private work cannot be done: %s", error)
        return {"failure": "bad_model", "finding": str(error)}
    except Exception as error:  # noqa: BLE001  the boundary: a worker answers every request
        log.exception("private work cannot be tried")
        return {"failure": "bad_model", "finding": type(error).__name__}
    if passes.rows < trial.rehearsal.rows:
        log.info("%s: %d rows a pass, %d threads", trial.task, passes.rows, passes.threads)
    return {"passes": encode(passes)}


def _settings(raw: Mapping[str, Any]) -> WorkerSettings:
    sources = {name: SourceOptions(**source) for name, source in raw["sources"].items()}
    return WorkerSettings(**{**raw, "sources": sources})


def _read_requests(requests: queue.SimpleQueue[Mapping[str, Any]]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()
