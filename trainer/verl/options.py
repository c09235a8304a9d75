"""What a recipe says of verl, for runs with ``engine: verl``."""

from __future__ import annotations

from pydantic import Field

from verifiers.options import Options


class VerlOptions(Options):
    """nodes, processes_per_node: of the training processes, one a GPU. tensor_parallel: GPUs that share one copy of the
    policy while sampling. gpu_memory_utilization: of vLLM. agent_workers, reward_workers: Ray actors that ask for
    responses, and that judge them (each with verifier.workers processes). ray_cpus: that Ray may use on this machine,
    null: what it finds. record_tensors: every step's trajectories, log-probs, advantages and weights in the loss are
    written to the run's folder. overrides: ``key=value`` for verl's own configuration, set last and not checked by
    assay."""

    nodes: int = Field(default=1, ge=1)
    processes_per_node: int = Field(default=1, ge=1)
    tensor_parallel: int = Field(default=1, ge=1)
    gpu_memory_utilization: float = Field(default=0.5, gt=0, le=1)
    agent_workers: int = Field(default=1, ge=1)
    reward_workers: int = Field(default=1, ge=1)
    ray_cpus: int | None = Field(default=None, ge=1)
    record_tensors: bool = False
    overrides: list[str] = Field(default_factory=list)

    @property
    def processes(self) -> int:
        return self.nodes * self.processes_per_node
