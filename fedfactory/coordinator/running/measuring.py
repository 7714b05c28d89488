"""Measures models on the coordinator's public set beside the run's loop, one at a time."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fedfactory.contracts.bounds import shareable
from fedfactory.contracts.errors import FedfactoryError

if TYPE_CHECKING:
    from fedfactory.coordinator.running.central import CentralEvaluator

log = logging.getLogger("fedfactory.runner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was found of a round's model; empty if it could not be measured (the log says why)."""

    round: int
    metrics: Mapping[str, float]


class Measuring:
    """A thread that measures what it is given and tells each result. Closes the evaluator."""

    def __init__(self, evaluator: CentralEvaluator, tell: Callable[[Measured], object]) -> None:
        self._evaluator = evaluator
        self._tell = tell
        self._wanted: queue.SimpleQueue[tuple[int, Path] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="measuring", daemon=True)
        self._thread.start()

    def measure(self, number: int, model: Path) -> None:
        """Measure the model of a round; the result is told later."""
        self._wanted.put((number, model))

    def close(self) -> None:
        """End the evaluator's process, then the thread."""
        self._wanted.put(None)
        self._evaluator.close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _work(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            number, model = wanted
            try:
                metrics = shareable(self._evaluator.measure(model))
            except (FedfactoryError, OSError) as error:
                log.warning("the model of round %d could not be measured: %s", number, error)
                metrics = {}
            self._tell(Measured(round=number, metrics=metrics))
