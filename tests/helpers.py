"""Tiny models, recipes and trajectories for tests. Everything here runs in milliseconds on a CPU."""

from __future__ import annotations

import copy
import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import data
import trainer.session
import trainer.weigh
from prm.cotrained import ModelSetup
from prm.signal import SourceContext
from rollout.engine import Prompt
from rollout.models import load_policy, read_weights
from rollout.torch_engine import TorchEngine
from rollout.trajectory import Finish, Trajectory
from trainer.collect import Rollouts
from trainer.config import Config
from trainer.learner import Learner, TrainingBatch
from verifiers.options import parse_options
from verifiers.runner import Runner

CPU = torch.device("cpu")
CHAR_TOKENIZER = Path(data.__file__).parent / "assets" / "char_tokenizer"
VOCABULARY = 100  # of the character tokenizer
EOS = 2

RECIPE: dict[str, Any] = {
    "name": "test",
    "description": "a recipe for tests",
    "seed": 0,
    "model": {
        "scratch": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "max_positions": 256,
            "tie_embeddings": False,
        },
        "tokenizer": str(CHAR_TOKENIZER),
    },
    "data": {"train": {"kind": "chain"}, "max_prompt_tokens": 32},
    "template": {"kind": "plain"},
    "verifier": {"kind": "exact"},
    "sources": [{"kind": "rule"}],
    "rollout": {"prompts_per_step": 4, "samples_per_prompt": 2, "max_response_tokens": 16},
    "objective": {"advantage": {"kind": "grpo"}, "loss": {"kind": "ppo_clip"}},
    "optim": {"lr": 1e-2, "grad_clip": 1e9},
    "train": {"steps": 10, "max_tokens_per_microbatch": 4096, "logprob_chunk_tokens": 7},
}


def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHAR_TOKENIZER)


def reference_log_probs(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Log-probabilities [R, V] after temperature and nucleus, by a full sort in float64; -inf outside the nucleus."""
    out = torch.full(logits.shape, -math.inf, dtype=torch.float64)
    for r, row in enumerate(torch.log_softmax(logits.double() / temperature, -1)):
        order = row.argsort(descending=True)
        total, kept = 0.0, list[int]()
        for token in order.tolist():
            if total >= top_p:
                break
            kept.append(token)
            total += math.exp(row[token])
        out[r, kept] = row[kept] - torch.logsumexp(row[kept], 0)
    return out


def make_config(overrides: dict[str, Any] | None = None) -> Config:
    """The recipe above with `overrides` by dotted key, e.g. ``{"objective.kl.coef": 0.1}``."""
    values = copy.deepcopy(RECIPE)
    for key, value in (overrides or {}).items():
        node = values
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return parse_options(Config, values)


def model_setup(config: Config) -> ModelSetup:
    return trainer.session.model_setup(config, CPU)


def source_context(runner: Runner, config: Config | None = None, generate: Any = None) -> SourceContext:
    """For a reward source on its own; `generate` stands for the policy where a source samples from it."""
    config = config or make_config()
    return SourceContext(runner, tokenizer(), CPU, config.seed, model_setup(config), generate,
                         config.rollout.max_response_tokens)  # fmt: skip


def weigh(session: Any, rollouts: Rollouts) -> tuple[TrainingBatch, dict[str, float]]:
    """The trainer's `weigh` of what judging sources said (those of a stand-in session need not exist)."""
    if not hasattr(session, "sources"):
        session.sources = [SimpleNamespace(phase="judge") for _ in session.config.sources]
    signals = [s.select(rollouts.kept) for s in rollouts.signals]
    return trainer.weigh.weigh(session, rollouts.what_is_kept(0), signals)


def sharpen(model: nn.Module, seed: int = 1, scale: float = 0.15) -> nn.Module:
    """Random noise on every parameter: distributions far from uniform, norm gains not 1, biases not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.dtype) * scale)
    return model


def tiny_architecture(kind: str = "llama", tied: bool = False, vocabulary: int = VOCABULARY) -> PretrainedConfig:
    """Two layers, four query heads over two key-value heads. qwen2 has qkv biases, qwen3 norms on q and k."""
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "pad_token_id": 0,
    }
    if kind == "qwen3":
        return Qwen3Config(**sizes, head_dim=16)  # not hidden_size / heads, as in the real ones
    return {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](**sizes)


def tiny_model(
    kind: str = "llama", tied: bool = False, attention: str = "eager", vocabulary: int = VOCABULARY
) -> PreTrainedModel:
    torch.manual_seed(0)
    config = tiny_architecture(kind, tied, vocabulary)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    sharpen(model)
    return model.eval()


def make_engine(model: PreTrainedModel, *, version: int = 0, **options: Any) -> TorchEngine:
    settings = {
        "dtype": torch.float32,
        "device": CPU,
        "max_prompt_tokens": 40,
        "max_response_tokens": 64,
        "max_rows": 64,
        "eos_ids": [EOS],
    } | options
    eos_ids = settings.pop("eos_ids")
    engine = TorchEngine(model.config, tokenizer(), eos_ids, **settings)
    engine.load_weights(model.state_dict(), version)
    return engine


def prompts(lengths: list[int], seed: int = 3) -> list[Prompt]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Prompt(f"example-{i}", i, torch.randint(5, VOCABULARY, (n,), generator=generator).tolist())
        for i, n in enumerate(lengths)
    ]


def forward_logits(model: nn.Module, prompt_ids: list[int], response_ids: list[int]) -> Tensor:
    """Logits [T_i, V] that score the response, from a fresh forward of this one sequence: no packing, no cache."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + response_ids]), use_cache=False).logits[0]
    return logits[len(prompt_ids) - 1 : -1]


def make_double(model: nn.Module) -> nn.Module:
    """Float64 throughout: transformers' RMSNorm rounds to float32 inside whatever the dtype, so it is replaced."""

    def norm(module: nn.Module, x: Tensor) -> Tensor:
        return module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)  # type: ignore

    for module in model.double().modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = partial(norm, module)
    return model


def make_learner(overrides: dict[str, Any] | None = None, *, double: bool = False) -> Learner:
    """A learner of a small random policy, its reference frozen; `double` makes model and arithmetic float64."""
    config = make_config(overrides)
    policy = load_policy(config.model, config.seed, CPU)
    sharpen(policy.model)
    if double:
        make_double(policy.model)
    learner = Learner(config, policy, CPU)
    if double:
        learner.compute_dtype = learner.packed.compute_dtype = torch.float64
    learner.freeze_reference()
    return learner


def trajectory(
    prompt_ids: list[int], response_ids: list[int], group: int = 0, sample: int = 0, **fields: Any
) -> Trajectory:
    logp = fields.pop("logp", [-1.0] * len(response_ids))
    return Trajectory(
        example_id=f"example-{group}",
        group=group,
        sample=sample,
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        logp_sampled=logp,
        logp_model=list(logp),
        finish=fields.pop("finish", Finish.STOP),
        text=fields.pop("text", ""),
        **fields,
    )


def random_trajectories(groups: int = 4, samples: int = 2, seed: int = 5) -> list[Trajectory]:
    """Prompts of 1 to 9 tokens, responses of 1 to 12, log-probs as an engine might have sampled them."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, n: int) -> list[int]:
        return torch.randint(low, high, (n,), generator=generator).tolist()

    out = []
    for group in range(groups):
        prompt = integers(5, VOCABULARY, integers(1, 10, 1)[0])
        for sample in range(samples):
            n = integers(1, 13, 1)[0]
            logp = (-3 * torch.rand(n, generator=generator) - 1.5).tolist()
            out.append(trajectory(prompt, integers(5, VOCABULARY, n), group, sample, logp=logp))
    return out


def training_batch(trajectories: list[Trajectory], seed: int = 7, included: list[bool] | None = None) -> TrainingBatch:
    """Random advantages, one a token."""
    generator = torch.Generator().manual_seed(seed)
    advantages = [torch.randn(t.num_response_tokens, generator=generator) for t in trajectories]
    mask = torch.ones(len(trajectories), dtype=torch.bool) if included is None else torch.tensor(included)
    return TrainingBatch(trajectories, advantages, mask)


def gradients(learner: Learner) -> dict[str, Tensor]:
    return {n: p.grad.detach().clone() for n, p in learner.model.named_parameters() if p.grad is not None}


def update_gradients(learner: Learner, batch: TrainingBatch) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What one `update` feeds the optimizer, and its metrics; the weights stay as they are."""
    seen: dict[str, Tensor] = {}

    def step() -> None:
        seen.update(gradients(learner))

    original, learner.optimizer.step = learner.optimizer.step, step  # type: ignore[method-assign]
    try:
        metrics = learner.update(batch)
    finally:
        learner.optimizer.step = original  # type: ignore[method-assign]
    return seen, metrics


def assert_resumed_is_whole(whole: list[dict], parts: list[dict]) -> list[set[str]]:
    """Lines of metrics.jsonl of a run that was not interrupted, and of one that was: the same numbers, step by step.
    Returns the names that both have: the interrupted run evaluated once more, at its first end."""
    shared = [set(a) & set(b) for a, b in zip(whole, parts, strict=True)]
    for a, b, names in zip(whole, parts, shared, strict=True):
        assert {k: a[k] for k in names} == {k: b[k] for k in names}
    return shared


def assert_same_run(one: Path, other: Path, tolerance: float) -> None:
    """Two run folders of other numbers of ranks: the same metrics, and weights of the last checkpoint."""
    read = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    for a, b in zip(*read, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            # norms and peaks sum over many values, of weights that differ by the rounding of the steps before
            relative = tolerance if "loss" in name else 5 * tolerance
            assert abs(b[name] - value) <= max(tolerance, relative * abs(value)), (a["step"], name)
    last = sorted((one / "checkpoints").iterdir())[-1]
    folders = [path.parent.relative_to(one) for path in sorted(last.rglob("model.safetensors"))]
    assert folders
    for folder in folders:
        first, second = read_weights(one / folder), read_weights(other / folder)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert float((tensor - second[name]).abs().max()) <= tolerance, (folder, name)
