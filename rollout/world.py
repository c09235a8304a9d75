"""`World`: the processes that train one model together, and what they say to each other.

Every rank knows the whole step: it draws the same prompts and holds all trajectories, verdicts and advantages, so that
a statistic over the batch is global as it stands. What is divided among the ranks is what costs: generation,
verification, requests to judges, forward and backward passes. Whatever is not a function of seeds and weights alone (a
verdict that may time out, a reply of a server) is asked for by one rank, and its answer holds for all.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from verifiers.errors import ConfigError, RunError

K = TypeVar("K")
T = TypeVar("T")


_of_thread = threading.local()


def exchange_over(group: dist.ProcessGroup) -> None:
    """From here on this thread's exchanges go over `group`, apart from those of the other threads, which every rank may
    begin in another order."""
    _of_thread.group = group


@dataclass(frozen=True)
class World:
    """rank of size; local_rank on its machine. mesh: of ("replicate", "shard"), None for a single process. state: what
    this rank is doing, for the others to see when it falls silent (`watchdog`)."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    mesh: DeviceMesh | None = None
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        """The rank that writes the records."""
        return self.rank == 0

    # ---- exchanges: every rank calls them in the same order, thread by thread (`exchange_over`) ----------

    def gather(self, value: T) -> list[T]:
        """`value` of every rank, by rank."""
        if self.size == 1:
            return [value]
        self.state["waits_for"] = "what the other ranks found"
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=getattr(_of_thread, "group", None))
        self.state.pop("waits_for", None)
        return found

    def from_main(self, value: Callable[[], T]) -> T:
        """What rank 0 makes of `value()`; the others do not call it."""
        return self.gather(value() if self.is_main else None)[0]  # type: ignore[return-value]

    def broadcast(self, tensor: Tensor | None, like: Tensor, device: torch.device) -> Tensor:
        """`tensor` of rank 0, on `device` of every rank. like: its shape and dtype; it may be without memory."""
        given = (
            torch.empty(like.shape, dtype=like.dtype, device=device)
            if tensor is None
            else tensor.to(device).contiguous()
        )
        dist.broadcast(given, 0)
        return given

    def union(self, mine: Mapping[K, T]) -> dict[K, T]:
        """The entries of all ranks; no key is of two."""
        out: dict[K, T] = {}
        for part in self.gather(dict(mine)):
            out |= part
        return out

    def total(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums by name over all ranks, added in the order of the ranks; a name that some lack counts 0 there."""
        parts = self.gather(dict(sums))
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: sum(part.get(name, 0.0) for part in parts) for name in names}

    def any(self, flag: bool) -> bool:
        return any(self.gather(flag))

    def barrier(self) -> None:
        """Go on when every rank is here."""
        self.gather(None)

    def share(self, count: int) -> list[int]:
        """Which of `count` things are this rank's."""
        return list(range(self.rank, count, self.size))

    def shared_work(self, items: Sequence[T], work: Callable[[list[T]], list[K]]) -> list[K]:
        """`work` on this rank's share of `items`; the results of all, in the order of `items`."""
        if self.size == 1:
            return work(list(items))
        mine = self.share(len(items))
        found = self.union(dict(zip(mine, work([items[i] for i in mine]), strict=True)))
        return [found[i] for i in range(len(items))]

    def check_same(self, what: str, tensors: Sequence[Tensor]) -> None:
        """Raise `RunError` on every rank unless the CPU tensors are the same everywhere, to the last bit: ranks that
        drift apart would train on different batches without a word."""
        if self.size == 1:
            return
        sha = hashlib.sha256()
        for tensor in tensors:
            sha.update(tensor.detach().contiguous().numpy().tobytes())
        digests = self.gather(sha.hexdigest()[:12])
        if len(set(digests)) > 1:
            shown = ", ".join(f"rank {r}: {d}" for r, d in enumerate(digests))
            raise RunError(
                f"The ranks no longer agree on {what}.",
                where=shown,
                why="from here on each would train on another batch",
                fix="resume from the last checkpoint; if it comes again at the same step, check that all nodes run the "
                "same versions and see the same files (resolved.yaml names both)",
            )

    def leave(self) -> None:
        """At the end, when no rank waits for another: threads of the exchange that are still there when the process
        ends would abort it."""
        if self.size > 1 and dist.is_initialized():
            self.barrier()
            dist.destroy_process_group()


def launched_size() -> int:
    """How many processes the launcher started (torchrun, Slurm's wrapper), 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Before the ranks have met: whether this will be rank 0, who writes the run folder."""
    return os.environ.get("RANK", "0") == "0"


def join_world(device_type: str, *, replicas: int, timeout_s: float) -> World:
    """Meet the other ranks that torchrun started; a `World` of one where there are none.

    replicas: whole copies of the sharded model (HSDP); must divide the number of ranks. timeout_s: how long a rank
    waits for another in an exchange. Raises `ConfigError` for a launch that cannot work.
    """
    size = launched_size()
    if size == 1:
        return World()
    missing = [n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE={size} is set, but not {', '.join(missing)}.", where="the environment",
                          why="the ranks could not find each other",
                          fix="start with torchrun (docs/distributed.md), or unset WORLD_SIZE")  # fmt: skip
    if size % replicas:
        raise ConfigError(f"{replicas} copies of the model cannot share {size} ranks.",
                          where="hardware.distributed.replicas", fix=f"choose a divisor of {size}")  # fmt: skip
    local_rank = int(os.environ["LOCAL_RANK"])
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    mesh = init_device_mesh(device_type, (replicas, size // replicas), mesh_dim_names=("replicate", "shard"))
    state = {"host": socket.gethostname(), "pid": os.getpid()}
    return World(dist.get_rank(), size, local_rank, mesh, state)
