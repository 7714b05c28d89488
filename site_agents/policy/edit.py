"""Changes one operator's pin in the text of a policy.yaml, and leaves every other letter. Pure."""

from __future__ import annotations

from typing import Any

import yaml

from site_agents.policy.nodes import PolicyFileError, Source
from site_agents.policy.pins import OperatorPin
from site_agents.policy.text import pin_text


def with_pin(text: str, name: str, pin: OperatorPin, *, file: str) -> str:
    """Return a policy's text with another pin of the operator `name`; `file` is for errors.

    Raises:
        PolicyFileError: the text is no policy, or pins no such operator.
    """
    Source(file).read(text)
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    node = _under(_under(root, "operators"), name)
    if node is None:
        raise PolicyFileError(f"{file}: operators: no '{name}' is pinned")
    return text[: node.start_mark.index] + pin_text(pin) + text[_end(node) :]


def _under(node: Any, key: str) -> Any:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for found, value in node.value if found.value == key), None)


def _end(node: Any) -> int:
    """Return where a value's text ends: a block's node goes on to the next key."""
    while isinstance(node, yaml.MappingNode) and not node.flow_style:
        node = node.value[-1][1]
    end: int = node.end_mark.index
    return end
