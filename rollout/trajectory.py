"""`Trajectory`: one sampled response, token by token, as the engine really sampled it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Finish(StrEnum):
    STOP = "stop"  # end-of-sequence token or stop string
    LENGTH = "length"  # the token limit cut it off


@dataclass(slots=True)
class Trajectory:
    """Token in, token out: nothing downstream re-tokenises `text`.

    group: index of the prompt within the step; samples of one prompt share it. sample: index within the group.
    response_ids include the end-of-sequence token when the model emitted one.
    logp_sampled: log-probability of each response token under the distribution it was drawn from (temperature and top-p
    applied, renormalised). logp_model: under the untransformed model (temperature 1, no truncation).
    weights_version: optimizer steps taken by the weights that sampled it.
    """

    example_id: str
    group: int
    sample: int
    prompt_ids: list[int]
    response_ids: list[int]
    logp_sampled: list[float]
    logp_model: list[float]
    finish: Finish
    text: str
    weights_version: int = 0
    meta: dict = field(default_factory=dict)

    @property
    def num_response_tokens(self) -> int:
        return len(self.response_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)
