"""The losses that verl's training workers call: the recipe's policy loss, the critic's, and the implicit PRM's
cross-entropy.

All run the recipe's functions on verl's tensors. What a token weighs was decided for the whole step
(`step.Weighed`), so nothing here depends on micro-batches or ranks. Instances travel to the workers pickled.

Shapes: B responses of a micro-batch, padded to R tokens.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prm.implicit import cross_entropy
from trainer.config import ObjectiveConfig
from trainer.losses.base import LOSSES, LossInputs
from trainer.losses.value import ValueLossOptions, value_loss
from trainer.objective import kl_loss, needs_reference
from verifiers.options import parse_options

# of verl's queue, one value a response token
BEFORE, WEIGHT, CORRECTION = "assay_before", "assay_weight", "assay_correction"
VALUE_WEIGHT = "assay_value_weight"
LABEL, REFERENCE, SHARE = "assay_label", "assay_reference", "assay_share"
SUM, COUNTED = "assay_sum/", "assay_counted_tokens"


@dataclass(frozen=True)
class PolicyLossOfRecipe:
    """Sum over tokens of weight * (correction * loss + coef * KL), as `Learner` has it."""

    objective: ObjectiveConfig

    def __call__(self, model_output: Any, data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
        fields = [BEFORE, WEIGHT, CORRECTION, "advantages", "response_mask"]
        kl = self.objective.kl
        in_loss = needs_reference(kl) and kl.place == "loss"
        fields += ["ref_log_prob"] if in_loss else []
        logp_BR, padded, mask = _of_responses(model_output["log_probs"], data, fields)
        of = {name: padded[name][mask] for name in fields}
        logp_R, weight_R = logp_BR[mask], of[WEIGHT]
        segment_R = torch.arange(len(mask), device=mask.device)[:, None].expand(mask.shape)[mask]
        entry = LOSSES.get(self.objective.loss.kind)
        inputs = LossInputs(logp_R, of[BEFORE], of["advantages"], segment_R, weight_R > 0)
        loss_R, diagnostics = entry.compute(inputs, parse_options(entry.options, self.objective.loss.options))
        loss_R = loss_R * of[CORRECTION]
        if in_loss:
            kl_R = kl_loss(logp_R, of["ref_log_prob"], of[BEFORE], kl.estimator, kl.gradient)
            loss_R = loss_R + kl.coef * kl_R
            diagnostics["kl_reference"] = kl_R.detach()
        # where, not a product: what is left out must not bring a NaN in (0 * NaN is NaN)
        loss = torch.where(weight_R > 0, loss_R * weight_R, 0.0).sum() * data["dp_size"]
        counted_R = weight_R > 0
        sums = {name: (values_R.detach() * counted_R).sum() for name, values_R in diagnostics.items()}
        return loss, _metrics(sums | {"": counted_R.sum()}, data["dp_size"])


@dataclass(frozen=True)
class ImplicitLoss:
    """`prm.implicit.cross_entropy`, of every response by its share of the step."""

    beta: float

    def __call__(self, model_output: Any, data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
        fields = [LABEL, REFERENCE, SHARE, "response_mask"]
        logp_BR, padded, mask = _of_responses(model_output["log_probs"], data, fields)
        taught = [i for i in range(len(mask)) if bool((padded[SHARE][i] > 0).any())]
        if not taught:
            return logp_BR.sum() * 0, {}
        q = [logp_BR[i][mask[i]] - padded[REFERENCE][i][mask[i]] for i in taught]
        label_S, share_S = padded[LABEL][taught, 0], padded[SHARE][taught, 0]
        loss = (cross_entropy(q, label_S, self.beta) * share_S).sum()
        return loss * data["dp_size"], {}


@dataclass(frozen=True)
class ValueLossOfRecipe:
    """The critic's token mean, as `Learner`'s and `Critic`'s `value_loss_term` has it."""

    options: ValueLossOptions

    def __call__(self, model_output: Any, data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
        fields = ["values", "returns", VALUE_WEIGHT, "response_mask"]
        value_BR, padded, mask = _of_responses(model_output["values"], data, fields)
        weight_R = padded[VALUE_WEIGHT][mask]
        loss_R, diagnostics = value_loss(value_BR[mask], padded["values"][mask], padded["returns"][mask], self.options)
        loss = (loss_R * weight_R).sum() * data["dp_size"]
        return loss, _sums({name: (of_R * weight_R).sum() for name, of_R in diagnostics.items()}, data["dp_size"])


def _of_responses(output: Any, data: Any, fields: list[str]) -> tuple[Tensor, Any, Tensor]:
    """(the model's output before each token of the responses [B, R], the fields padded alike, bool [B, R]: which
    positions are tokens)."""
    from verl.workers.utils.padding import no_padding_2_padding

    output_BR = no_padding_2_padding(output, data)
    padded = data.select(*fields).to_padded_tensor()
    return output_BR, padded, padded["response_mask"].bool()


def _metrics(sums: dict[str, Tensor], ranks: int) -> dict[str, Any]:
    """To be divided by the counted tokens when all are in (`means`)."""
    return _sums({SUM + name if name else COUNTED: value for name, value in sums.items()}, ranks)


def _sums(sums: dict[str, Tensor], ranks: int) -> dict[str, Any]:
    """Metrics that verl adds up over micro-batches and ranks: it takes the mean over ranks."""
    from verl.utils.metric import AggregationType, Metric

    return {name: Metric(value=value.float() * ranks, aggregation=AggregationType.SUM) for name, value in sums.items()}


def means(metrics: dict[str, Any], prefix: str = "actor/") -> dict[str, Any]:
    """The metrics with the sums of `PolicyLossOfRecipe` divided by its tokens."""
    tokens = max(1.0, float(metrics.get(prefix + COUNTED, 1.0)))
    out = {}
    for name, value in metrics.items():
        if name.startswith(prefix + SUM):
            out[prefix + name.removeprefix(prefix + SUM)] = value / tokens
        elif name != prefix + COUNTED:
            out[name] = value
    return out
