"""Agents without worker, ledger or policy that speak the real protocol: many in one process.

`python -m bench.light_agents FOLDER...`: each FOLDER holds a site's identity/ and gateway.txt. An
agent verifies nothing; it answers each order with an update of zeros. On standard output: one JSON
line for each order, with the seconds from the doorbell to the order in hand.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
from site_agents.flower_seam import HEARTBEAT_S, FleetNode
from site_agents.waiting import Waiting

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import FedfactoryError, ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import Order
from fedfactory.contracts.plans import Delivery
from fedfactory.contracts.questions import Answer, Fitness
from fedfactory.contracts.updates import Payload, Reply, Update
from fedfactory.contracts.versions import own_version
from fedfactory.identity.enrolment import load_identity, load_node_key
from fedfactory.wire.arrays import ArrayFile, ArrayWriter
from site_agents.gateway_client import GatewayClient

POLL_S = 30.0
FIT = Answer(fitness=Fitness(code="", version=own_version()), logs=None)
_PRINTING = threading.Lock()


class LightAgent:
    """One site. `run` returns when the gateway hangs up."""

    def __init__(self, home: Path) -> None:
        self._home = home
        identity = home / "identity"
        self._gateway = GatewayClient((home / "gateway.txt").read_text(), load_identity(identity))
        self._node = FleetNode(self._gateway.tunnel, load_node_key(identity))
        self._rung = threading.Event()
        self._waiting = Waiting()
        self._rung_at: float | None = None  # for a message that is not in hand yet
        self._over = threading.Event()
        self._zeros: BlobRef | None = None

    def run(self) -> None:
        while not self._over.is_set():
            try:
                self._node.activate()
                threading.Thread(target=self._beat, daemon=True).start()
                threading.Thread(target=self._listen, daemon=True).start()
                while not self._over.is_set():
                    if not self._rung.wait(POLL_S):
                        self._waiting.told(0)
                    self._rung.clear()
                    while self._waiting.pulls():
                        self._take()
            except FedfactoryError:
                time.sleep(0.5)

    def _take(self) -> None:
        incoming = self._node.pull()
        rung_at, self._rung_at = self._rung_at, None
        if incoming is None:
            return
        self._waiting.found()
        if incoming.message is not None:
            reply = self._answer(incoming.text, rung_at)
            if reply is not None:
                self._node.answer(incoming, to_json(reply))

    def _listen(self) -> None:
        try:
            for rung in self._gateway.listen():
                if rung.question is not None:
                    self._gateway.answer(rung.question_id, FIT)
                    continue
                if rung.messages and self._rung_at is None:
                    self._rung_at = time.time()
                self._waiting.told(rung.messages)
                self._rung.set()
        except FedfactoryError:
            pass
        self._over.set()
        self._rung.set()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            try:
                self._node.heartbeat()
            except FedfactoryError:
                return

    def _answer(self, text: str, rung_at: float | None) -> Reply | None:
        now = time.time()
        try:
            sending = from_json(Delivery, text).sending
        except ProtocolError:
            return None
        order = sending.order
        if rung_at is not None:  # None: it looked by itself, before it was rung
            with _PRINTING:
                print(json.dumps({"doorbell_s": now - rung_at, "round": order.round}), flush=True)
        payload = Payload(form="delta", blob=self._update_of(order))
        update = Update(
            work=order.key(),
            payload=payload if order.kind == "train" else None,
            examples=1,
            metrics={"loss": 1.0, "accuracy": 0.5},
            seconds=0.0,
            privacy=None,
        )
        return Reply(update=update, refusal=None, anchor=None)

    def _update_of(self, order: Order) -> BlobRef:
        """Fetch the base and send zeros in its form, as large as a trained update."""
        base = self._home / "base.safetensors"
        base.unlink(missing_ok=True)
        self._gateway.download(order.base, base)
        path = self._home / "update.safetensors"
        if self._zeros is None:
            with ArrayFile(base) as file:
                spec = file.spec.update_spec()
            writer = ArrayWriter(path, spec)
            for tensor in spec.tensors:
                writer.write(np.zeros(tensor.elements, dtype=np.float32))
            self._zeros = writer.commit()
        self._gateway.upload(path, self._zeros)
        return self._zeros


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.light_agents", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    agents = [LightAgent(folder) for folder in parser.parse_args().folders]
    for agent in agents:
        threading.Thread(target=agent.run, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
