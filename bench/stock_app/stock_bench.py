"""The benchmark's work as a stock Flower app: same data, split, model, SGD and seeds as ours."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedfactory.contracts.orders import TrainParameters
from fedfactory.tasks.seeds import derive_seed
from fedfactory.tasks.table import load_task
from fedfactory.wire.arrays import read_arrays, write_arrays
from site_agents.data.sources import open_source

SITES = ["cesga", "cyfronet", "lumi"]
SEED = 1
TRAINING = TrainParameters(
    local_epochs=2, batch_size=32, lr=0.1, momentum=0.9, proximal_mu=0.0, max_steps=None
)

client = ClientApp()
server = ServerApp()


def _work(message: Message, context: Context, kind: str) -> Message:
    config = context.run_config
    site = SITES[int(context.node_config["partition-id"])]
    task = load_task(str(config["task"]))
    options = {
        "kind": "partition",
        "task": task.name,
        "path": None,
        "partition": {"kind": "iid", "alpha": None, "labels_per_site": None},
        "sites": SITES,
        "site": site,
        "seed": SEED,
    }
    parameters = json.loads(str(config["parameters"]))
    reads_data = task.data_schema(parameters) is not None
    data = open_source("share", options, "share").load(task, parameters) if reads_data else None
    workload = task.open(parameters, data, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        base, out = Path(folder) / "base", Path(folder) / "update"
        arrays = {n: a.numpy() for n, a in message.content["arrays"].items()}
        write_arrays(base, arrays)
        content = RecordDict()
        if kind == "train":
            seed = derive_seed(SEED, site, int(message.content["config"]["server-round"]), kind)
            outcome = workload.train(base=base, out=out, training=TRAINING, seed=seed)
            delta = read_arrays(out)
            content["arrays"] = ArrayRecord(
                {n: Array(a + delta[n] if n in delta else a) for n, a in arrays.items()}
            )
        else:
            outcome = workload.evaluate(base=base)
    metrics = {"num-examples": outcome.examples, **outcome.metrics}
    content["metrics"] = MetricRecord(metrics)
    return Message(content, reply_to=message)


@client.train()
def train(message: Message, context: Context) -> Message:
    return _work(message, context, "train")


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return _work(message, context, "evaluate")


class Timed(FedAvg):
    """FedAvg that notes when each round's last step ended."""

    def __init__(self, times: Path, evaluate: bool) -> None:
        super().__init__(
            min_train_nodes=3,
            min_evaluate_nodes=3,
            min_available_nodes=3,
            fraction_evaluate=1.0 if evaluate else 0.0,
        )
        self._times, self._evaluate = times, evaluate

    def aggregate_train(self, server_round, replies):
        result = super().aggregate_train(server_round, replies)
        if not self._evaluate:
            self._note()
        return result

    def aggregate_evaluate(self, server_round, replies):
        result = super().aggregate_evaluate(server_round, replies)
        if self._evaluate:
            self._note()
        return result

    def _note(self) -> None:
        with self._times.open("a") as file:
            file.write(f"{time.time()}\n")


@server.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "initial"
        task = load_task(str(config["task"]))
        task.write_initial(json.loads(str(config["parameters"])), SEED, path)
        initial = ArrayRecord({n: Array(a) for n, a in read_arrays(path).items()})
    strategy = Timed(Path(str(config["times"])), bool(config["evaluate"]))
    strategy.start(
        grid=grid,
        initial_arrays=initial,
        num_rounds=int(config["rounds"]),
        train_config=ConfigRecord(),
    )
