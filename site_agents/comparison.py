"""What would leave, line by line against what the plan declared. Pure: text in, text out.

The guard and the ledger held it against both before; a person sees here what they let go.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedfactory.contracts.model import DTYPES, TensorSpec
from site_agents.leaving import Leaving


@dataclass(frozen=True, slots=True)
class Line:
    """One fact: its planned form ("-" where a plan has no say), what leaves, whether it fits."""

    what: str
    planned: str
    leaves: str
    fits: bool


def compare(leaving: Leaving) -> tuple[Line, ...]:
    """Return every fact of an update beside what its plan declared."""
    plan = leaving.plan
    return (
        Line("task", plan.task, leaving.task, leaving.task == plan.task),
        Line(
            "round",
            f"1 to {plan.rounds}",
            f"{leaving.round}",
            1 <= leaving.round <= plan.rounds,
        ),
        Line("strategy", plan.strategy_name, "-", True),
        Line("first model", plan.initial.digest, "-", True),
        Line("learning rate", f"at most {plan.training.lr:g}", "-", True),
        *(_arrays(leaving) if leaving.kind == "train" else ()),
        *_privacy(leaving),
        *(Line(f"metric {name}", "-", f"{value!r}", True) for name, value in _metrics(leaving)),
        Line(
            "examples", "-", "not told" if leaving.examples is None else f"{leaving.examples}", True
        ),
    )


def tensor_lines(leaving: Leaving) -> tuple[Line, ...]:
    """Return every tensor that is declared or leaves, by name."""
    declared = {tensor.name: tensor for tensor in leaving.declared}
    found = {tensor.name: tensor for tensor in leaving.tensors}
    return tuple(
        Line(
            f"tensor {name!a}",
            _form(declared.get(name)),
            _form(found.get(name)),
            declared.get(name) == found.get(name),
        )
        for name in sorted({*declared, *found})
    )


def _arrays(leaving: Leaving) -> tuple[Line, ...]:
    plan, blob, norm = leaving.plan, leaving.blob, leaving.norm_l2
    bound = plan.max_update_norm_l2
    size = 0 if blob is None else blob.bytes
    return (
        Line(
            "tensors",
            f"{len(leaving.declared)}",
            f"{len(leaving.tensors)}",
            leaving.tensors == leaving.declared,
        ),
        Line(
            "bytes",
            f"at most {plan.max_model_bytes}",
            f"{size}",
            blob is not None and size <= plan.max_model_bytes,
        ),
        Line(
            "norm (L2)",
            "by the rule, met" if bound is None else f"at most {bound:g}",
            "unknown" if norm is None else f"{norm:.6g}",
            norm is not None and (bound is None or norm <= bound),
        ),
        Line("digest", "-", "none" if blob is None else blob.digest, blob is not None),
    )


def _privacy(leaving: Leaving) -> tuple[Line, ...]:
    asked, held = leaving.plan.privacy, leaving.privacy
    if asked is None or held is None:
        both = asked is None and held is None
        return (
            Line(
                "privacy",
                "no differential privacy" if asked is None else "differential privacy",
                "no differential privacy" if held is None else "differential privacy",
                both,
            ),
        )
    target = asked.target_epsilon
    charged = leaving.epsilon_charged
    return (
        Line(
            "epsilon of the run",
            f"noise {asked.noise_multiplier:g}" if target is None else f"at most {target:g}",
            f"{held.epsilon_run:.4g} so far",
            target is None or held.epsilon_run <= target,
        ),
        Line("delta", f"{asked.delta:g}", f"{held.delta:g}", True),
        Line("epsilon of this work", "-", "unknown" if charged is None else f"{charged:.4g}", True),
    )


def _metrics(leaving: Leaving) -> list[tuple[str, float]]:
    return sorted(leaving.metrics.items())


def _form(tensor: TensorSpec | None) -> str:
    if tensor is None:
        return "none"
    shape = " x ".join(map(str, tensor.shape)) or "one number"
    return f"{shape} {DTYPES[tensor.dtype][0].lstrip('<|')}"
