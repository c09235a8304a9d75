"""What is asked of vLLM and what it answers, as plain data: the same fields for the library and for its server.

No vLLM is imported here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rollout.engine import Prompt, SamplingParams, response_text
from rollout.trajectory import Finish, Trajectory
from verifiers.errors import RunError

FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH}


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One response to one prompt, from a random stream of its own. A group of n samples is n requests: they share the
    prompt's keys through vLLM's prefix cache, and none depends on how many others there are."""

    prompt_ids: list[int]
    sampling: SamplingParams
    eos_ids: tuple[int, ...]
    seed: int

    def fields(self) -> dict[str, Any]:
        """By vLLM's names. ignore_eos together with stop_token_ids: the response ends at our end tokens and no others,
        whatever the model's generation config says."""
        sampling = self.sampling
        return {
            "n": 1,
            "max_tokens": sampling.max_response_tokens,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "top_p": 1.0 if sampling.greedy else sampling.top_p,
            "seed": self.seed,
            "stop": list(sampling.stop),
            "stop_token_ids": list(self.eos_ids),
            "ignore_eos": True,
            "include_stop_str_in_output": True,
            "skip_special_tokens": True,
            "logprobs": 0,
        }


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """The log-prob of each of the last `tokens` tokens of `ids` under the untransformed model. vLLM gives those of a
    prompt without temperature and top-p in every logprobs mode. It must sample a token; that one is thrown away."""

    ids: list[int]
    tokens: int

    @property
    def prompt_ids(self) -> list[int]:
        return self.ids

    def fields(self) -> dict[str, Any]:
        return {"n": 1, "max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "seed": 0, "ignore_eos": True,
                "prompt_logprobs": 0}  # fmt: skip


Request = SampleRequest | ScoreRequest


@dataclass(frozen=True, slots=True)
class Answer:
    """token_ids, logprobs: of a response with its end token; of a score request, the tokens asked for."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str


class Backend(Protocol):
    """vLLM, wherever it runs."""

    def start(self, key: int, request: Request) -> None:
        """Take a request; several are worked on at a time. `key` names its answer."""
        ...

    def wait(self) -> list[tuple[int, Answer]]:
        """Until at least one of the requests that were started has ended: the answers that are there."""
        ...

    def abort(self) -> None:
        """Drop what is not answered."""
        ...

    def load(self, weights: Mapping[str, Tensor], version: int) -> None: ...

    def sleep(self) -> None: ...

    def close(self) -> None: ...


def answer_of_output(request: Request, output: Any) -> Answer:
    """From a `RequestOutput` of the library."""
    completion = output.outputs[0]
    if isinstance(request, ScoreRequest):
        tail = list(output.prompt_logprobs)[-request.tokens :]
        ids = request.ids[-request.tokens :]
        return Answer(ids, [step[i].logprob for step, i in zip(tail, ids, strict=True)], "score")
    ids = list(completion.token_ids)
    logprobs = [step[i].logprob for step, i in zip(completion.logprobs, ids, strict=True)]
    return Answer(ids, logprobs, str(completion.finish_reason))


def answer_of_json(request: Request, body: Mapping[str, Any]) -> Answer:
    """From a response of the server's ``/v1/completions``. Raises `RunError` if something is missing from it."""
    try:
        choice = body["choices"][0]
        if isinstance(request, ScoreRequest):
            tail = choice["prompt_logprobs"][-request.tokens :]
            ids = request.ids[-request.tokens :]
            return Answer(ids, [step[str(i)]["logprob"] for step, i in zip(tail, ids, strict=True)], "score")
        ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        if len(ids) != len(logprobs) or not ids:
            raise KeyError("as many log-probs as tokens, and at least one")
        return Answer(ids, logprobs, choice["finish_reason"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RunError(f"The vLLM server's answer lacks {error}.", where="rollout.engine_options.server_url",
                       fix="serve with vLLM 0.32 or newer: assay asks for return_token_ids, logprobs and "
                       "prompt_logprobs") from error  # fmt: skip


def trajectory(
    prompt: Prompt,
    sample: int,
    answer: Answer,
    sampling: SamplingParams,
    tokenizer: PreTrainedTokenizerBase,
    eos_ids: Collection[int],
    version: int,
) -> Trajectory:
    """logp_model is right where vLLM's number is also the model's own; else it is empty, and to be asked for
    (`needs_scoring`)."""
    finish = FINISHES.get(answer.finish_reason)
    if finish is None:
        raise RunError(f"vLLM ended a response with '{answer.finish_reason}'.", where=f"example '{prompt.example_id}'",
                       why="it is neither finished nor cut at the limit, so it cannot be judged",
                       fix="look at vLLM's own log")  # fmt: skip
    logp = list(answer.logprobs)
    return Trajectory(
        example_id=prompt.example_id,
        group=prompt.group,
        sample=sample,
        prompt_ids=list(prompt.ids),
        response_ids=list(answer.token_ids),
        logp_sampled=[0.0] * len(logp) if sampling.greedy else logp,
        logp_model=[] if needs_scoring(sampling) else list(logp),
        finish=finish,
        text=response_text(tokenizer, answer.token_ids, eos_ids),
        weights_version=version,
    )


def needs_scoring(sampling: SamplingParams) -> bool:
    """Whether what was sampled from is not the model's own distribution: vLLM reports one log-prob a token, the one
    under the distribution drawn from, so the model's own takes a second pass over the response."""
    return not sampling.greedy and (sampling.temperature != 1.0 or sampling.top_p < 1.0)


def score_request(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> ScoreRequest:
    return ScoreRequest([*prompt_ids, *response_ids], len(response_ids))
