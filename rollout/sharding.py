"""FSDP2 for the policy and for every model beside it: what shards a model, and plain tensors in and out of it.

A process alone is the same code: nothing is sharded, and the functions hand the tensors through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rollout.options import ShardingOptions
from rollout.packed_model import PackedModel
from rollout.world import World


def shard(model: PackedModel, world: World, options: ShardingOptions) -> None:
    """Spread the parameters of `model` over the ranks, in place: each of its transformer layers is a unit that is
    gathered when it runs, in the compute dtype; what is left (embeddings, norms, the vocabulary's head) is gathered
    with the model itself, and the head of one number stays in its own dtype.

    The weights are those of rank 0, handed out one tensor at a time; the others' may be without memory (`load_policy`).

    Gradients are summed over the ranks, not averaged: the weights of the losses count the whole batch. They are reduced
    in float32. With two copies or more (`hardware.distributed.replicas`) each copy is sharded over its own ranks.
    """
    if world.mesh is None:
        return
    mesh = world.mesh["shard"] if world.mesh.size(0) == 1 else world.mesh
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if options.offload else OffloadPolicy()
    how: dict[str, Any] = {"mesh": mesh, "offload_policy": offload}
    tensors = _take_tensors(model)
    if model.head is not None:
        fully_shard(model.head, reshard_after_forward=True, **how)
    if model.compute_dtype == torch.bfloat16:
        how["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in transformer_layers(model):
        fully_shard(layer, reshard_after_forward=options.reshard_after_forward, **how)
    # given back at once, also at the root: a forward without a backward would leave weights that an optimizer step or
    # a checkpoint does not reach
    fully_shard(model, reshard_after_forward=True, **how)
    _place(model, tensors if world.is_main else {}, world, options)
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def _places(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Where each parameter stands; a tied one stands in several places."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(parameter, []).append((module, name))
    return list(places.values())


def _take_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of `model` by name; its parameters are left without memory."""
    taken = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    for places in _places(model):
        parameter = getattr(*places[0])
        hollow = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for module, name in places:
            setattr(module, name, hollow)
    return taken


@torch.no_grad()
def _place(model: nn.Module, tensors: dict[str, Tensor], world: World, options: ShardingOptions) -> None:
    """Give the sharded `model` memory for its shards and what it is to hold. tensors: of rank 0, given away."""
    assert world.mesh is not None
    kind = world.mesh.device_type
    device = torch.device(kind, world.local_rank) if kind == "cuda" else torch.device(kind)
    tied = _places(model)

    def allocated(tensor: Tensor) -> Tensor:
        where = torch.device("cpu") if options.offload and isinstance(tensor, DTensor) else device
        return torch.empty_like(tensor, device=where) if tensor.is_meta else tensor.to(where)

    model._apply(allocated)
    for (first, name), *others in tied:
        for module, other in others:
            setattr(module, other, getattr(first, name))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor.copy_(like(world.broadcast(tensors.pop(name, None), tensor, device), tensor))


def transformer_layers(module: nn.Module) -> list[nn.Module]:
    """The longest list of blocks in it."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, on every rank. All ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class WholeWeights(Mapping[str, Tensor]):
    """Tensors that lie in shards on the ranks, each gathered when it is read and kept by the reader only: never more
    than one of them is whole here. All ranks must read the same names in the same order.

    changes: by name, what is made of a tensor before it is gathered (a merged adapter). dtype: of the matrices, rounded
    before they are gathered; None: their own.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        changes: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        dtype: torch.dtype | None = None,
    ):
        self._tensors, self._changes, self.dtype = tensors, changes or {}, dtype
        self._names = list(tensors)
        self._place = {name: i for i, name in enumerate(self._names)}
        self._next = 0  # place of the name after the one read last
        self._is_cut = False

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._place  # the inherited one would gather it

    def shape(self, name: str) -> torch.Size:
        """Of the whole tensor, without gathering it."""
        return self._tensors[name].shape

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name].detach()
        self._next, self._is_cut = self._place[name] + 1, True
        if name in self._changes:
            tensor = self._changes[name](tensor)
        if self.dtype is not None and tensor.is_floating_point() and tensor.ndim > 1:
            tensor = tensor.to(self.dtype)
        whole = full(tensor)
        self._is_cut = False
        return whole

    def rounded_to(self, dtype: torch.dtype) -> WholeWeights:
        """The same with matrices of `dtype`."""
        return WholeWeights(self._tensors, self._changes, dtype)

    def finish(self) -> None:
        """Take part in gathering what the reader left unread: other ranks may wait for it. Nothing after an exchange
        that failed, since no rank goes on from there."""
        for name in () if self._is_cut else self._names[self._next :]:
            if isinstance(self._tensors[name], DTensor):
                self[name]


def whole(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors themselves where none is sharded, else `WholeWeights`."""
    sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    return WholeWeights(tensors) if sharded else {name: tensor.detach() for name, tensor in tensors.items()}


def whole_shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Of the whole tensors, in their order, without gathering any."""
    if isinstance(weights, WholeWeights):
        return {name: weights.shape(name) for name in weights}
    return {name: tensor.shape for name, tensor in weights.items()}


def on_host(weights: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Copies in the host's memory, made one at a time; keep=False takes part in gathering them and keeps none. All
    ranks must ask."""
    copies: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if keep:
            copies[name] = tensor.detach().to("cpu", copy=True)
    return copies


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """`state_dict` in whole tensors. All ranks must ask."""
    return dict(whole(module.state_dict()))


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor that every rank holds, placed as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return tensor
    whole = tensor.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


@torch.no_grad()
def load_full(
    module: nn.Module, weights: Mapping[str, Tensor], strict: bool = True, prefix: str = ""
) -> tuple[list[str], list[str]]:
    """`load_state_dict` of whole tensors, read one at a time, those whose names begin with `prefix`, without it:
    (missing, unexpected) names."""
    own = module.state_dict()
    placed: dict[str, Tensor] = {}
    for full_name in weights:
        if full_name.startswith(prefix):
            name = full_name.removeprefix(prefix)
            placed[name] = like(weights[full_name], own[name]) if name in own else weights[full_name]
    missing, unexpected = module.load_state_dict(placed, strict=strict)
    return missing, unexpected


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`state_dict` in whole tensors. All ranks must ask."""
    state = optimizer.state_dict()
    return state | {"state": {i: {n: full(v) if isinstance(v, Tensor) else v for n, v in entry.items()}
                              for i, entry in state["state"].items()}}  # fmt: skip


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The live state of an AdamW by name, made if no step was taken yet."""
    out: dict[str, Tensor] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(parameters):
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        out |= {f"optimizer.{i}.{name}": tensor.detach() for name, tensor in state.items()}
    return out


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore what `optimizer_state` gave, on any number of ranks."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    placed = {
        i: {n: like(v, parameters[i]) if isinstance(v, Tensor) and v.ndim else v for n, v in entry.items()}
        for i, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": placed})
