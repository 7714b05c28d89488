"""What a Flower message's configuration asks of a site, in the words of an order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flwr.app import ConfigRecord, Message

from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.orders import TrainParameters, WorkKind
from fedfactory.coordinator.aggregating.accumulator import AggregationError
from fedfactory.coordinator.aggregating.site_plan import PARAMETERS, with_parameters

# Flower's names for training parameters, as its strategies and tutorials write them.
CONFIG_KEYS: Final[Mapping[str, str]] = {name.replace("_", "-"): name for name in PARAMETERS}
# Flower's strategies note the round they are in; it is no memory.
ROUND_KEY: Final = "server-round"


def config_of(training: TrainParameters) -> ConfigRecord:
    """Return the run's training parameters as the configuration a strategy starts from."""
    values = {key: getattr(training, name) for key, name in CONFIG_KEYS.items()}
    return ConfigRecord({key: value for key, value in values.items() if value is not None})


def asked_of_site(
    kind: WorkKind, message: Message, training: TrainParameters
) -> TrainParameters | None:
    """Return the parameters that a message asks a site to train with; None for `evaluate`.

    Nothing is dropped in silence: a strategy whose request is not met is another strategy.

    Raises:
        AggregationError: it asks for what no order can carry, or for values out of range.
    """
    metadata, content = message.metadata, message.content
    if metadata.message_type != kind or content.metric_records:
        raise AggregationError(
            f"the strategy sends a '{metadata.message_type}' message with"
            f" {len(content.metric_records)} metric records; sites here take '{kind}' messages"
            " of arrays and configuration"
        )
    asked: dict[str, Any] = {}
    for record in content.config_records.values():
        asked.update({key: value for key, value in record.items() if key != ROUND_KEY})
    known = CONFIG_KEYS if kind == "train" else {}
    if unknown := sorted(asked.keys() - known.keys()):
        raise AggregationError(
            f"the strategy asks sites to '{kind}' with '{unknown[0]}', which no order can carry;"
            f" known: {', '.join(sorted(known)) or 'nothing'}"
        )
    if kind == "evaluate":
        return None
    try:
        return with_parameters(training, {known[key]: value for key, value in asked.items()})
    except UsageError as error:
        raise AggregationError(f"the strategy sets {error.public_message}") from error
