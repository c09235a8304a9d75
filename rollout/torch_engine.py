"""The `torch` engine: continuous batching over `LlamaDecoder`, on CPU, CUDA or MPS.

A prompt is prefilled once and shared by all its samples. Rows are dense; whenever samples finish, their rows are
compacted away and waiting samples take their place. All rows write their keys in one common column; a row that joined
later masks the columns before its start, and the window slides when its end is reached.

Shapes: R rows, N tokens a response may have; see `rollout.decoder` for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rollout.decoder import DecodeState, LlamaDecoder, check_decodable
from rollout.engine import (
    ENGINES,
    OnGroup,
    Prompt,
    SamplingParams,
    check_lengths,
    decode,
    response_text,
    row_names,
    row_seed,
)
from rollout.sampling import greedy_tokens, sample_tokens
from rollout.trajectory import Finish, Trajectory
from verifiers.errors import RunError

_STEPS_BETWEEN_CHECKS = 8  # decode steps between two looks at the tokens by the host (finished rows idle until then)
_PREFILL_TOKENS = 8192  # prompts are prefilled in chunks of about this many tokens


@dataclass(slots=True)
class _Row:
    """One sample in flight, on the host."""

    prompt: int
    sample: int
    tokens: list[int] = field(default_factory=list)
    logp_sampled: list[float] = field(default_factory=list)
    logp_model: list[float] = field(default_factory=list)
    finish: Finish | None = None


@ENGINES.register("torch")
class TorchEngine:
    """Built as `TorchEngine(config, tokenizer, eos_ids, dtype, device, max_prompt_tokens, max_response_tokens,
    max_rows)`.

    max_rows bounds the samples in flight (memory: max_rows rows of key-value cache). Raises `ModelError` for
    architectures the decoder does not know and for prompts longer than `max_prompt_tokens`.
    """

    @staticmethod
    def check(config: PretrainedConfig, options: None) -> None:
        """Raises `ModelError` for an architecture that the decoder does not know."""
        check_decodable(config)

    def __init__(
        self,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_prompt_tokens: int,
        max_response_tokens: int,
        max_rows: int,
    ):
        self.tokenizer, self.eos_ids = tokenizer, frozenset(eos_ids)
        self.max_prompt_tokens, self.max_response_tokens, self.max_rows = (
            max_prompt_tokens,
            max_response_tokens,
            max_rows,
        )
        self.device = device
        # a finished row idles on until the next look at the tokens, and its position runs on with it
        positions = max_prompt_tokens + max_response_tokens + _STEPS_BETWEEN_CHECKS
        self.decoder = LlamaDecoder(config, dtype, device, positions)
        self.version = -1

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        self.decoder.load(weights)
        self.version = version

    def sleep(self) -> None:
        self.decoder.unload()

    def close(self) -> None:
        self.sleep()

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: int,
        on_group: OnGroup | None = None,
    ) -> list[Trajectory]:
        """See `rollout.engine.Engine`."""
        if not self.decoder.layers:
            raise RunError("The engine has no weights: call load_weights before generate.")
        check_lengths(prompts, sampling, self.max_prompt_tokens, self.max_response_tokens)
        if not prompts:
            return []
        batch = _Batch(self, prompts, samples_per_prompt, sampling, seed)
        groups: list[list[Trajectory]] = [[] for _ in prompts]
        while batch.admit():
            batch.run_steps()
            for row in batch.collect_finished():
                group = groups[row.prompt]
                group.append(self._trajectory(prompts[row.prompt], row))
                if len(group) == samples_per_prompt:
                    group.sort(key=lambda trajectory: trajectory.sample)
                    if on_group is not None:
                        with torch.inference_mode(False):
                            on_group(list(group))
        return [trajectory for group in groups for trajectory in group]

    def _trajectory(self, prompt: Prompt, row: _Row) -> Trajectory:
        assert row.finish is not None
        return Trajectory(
            example_id=prompt.example_id,
            group=prompt.group,
            sample=row.sample,
            prompt_ids=list(prompt.ids),
            response_ids=row.tokens,
            logp_sampled=row.logp_sampled,
            logp_model=row.logp_model,
            finish=row.finish,
            text=response_text(self.tokenizer, row.tokens, self.eos_ids),
            weights_version=self.version,
        )


class _Batch:
    """The rows in flight of one `generate` call: device tensors, and their host mirror `rows` in the same order."""

    def __init__(
        self, engine: TorchEngine, prompts: Sequence[Prompt], samples: int, sampling: SamplingParams, seed: int
    ):
        self.engine, self.decoder, self.device = engine, engine.decoder, engine.device
        self.prompts, self.sampling, self.seed = prompts, sampling, seed
        self.row_names = row_names(prompts)
        self.limit = sampling.max_response_tokens
        self.waiting = [(p, s) for p in range(len(prompts)) for s in range(samples)][::-1]
        self.max_rows = min(engine.max_rows, len(self.waiting))
        refills = len(self.waiting) > self.max_rows
        # a row spans at most `limit` columns; the slack is how far the window runs before it must slide
        self.capacity = (
            self.limit + _STEPS_BETWEEN_CHECKS + (max(_STEPS_BETWEEN_CHECKS, self.limit // 4) if refills else 0)
        )
        d = self.decoder
        shape = (d.num_layers, self.max_rows, d.kv_heads)
        self.suffix_k = torch.empty(*shape, d.head_dim, self.capacity, dtype=d.dtype, device=self.device)
        self.suffix_v = torch.empty(*shape, self.capacity, d.head_dim, dtype=d.dtype, device=self.device)
        self.prefix_k: Tensor | None = None
        self.prefix_v: Tensor | None = None
        self.live: list[int] = []  # prompts whose keys are in the prefix cache, in cache order
        self.rows: list[_Row] = []
        empty = torch.empty(0, dtype=torch.long, device=self.device)
        self.token_R, self.start_R, self.prompt_length_R = empty, empty, empty
        self.uniform_RN = torch.empty(0, self.limit, device=self.device)
        self.column = 0
        self.fresh: dict[int, Tensor] = {}  # last-token logits of prompts prefilled but with samples still waiting

    # ---- admission ---------------------------------------------------

    def admit(self) -> bool:
        """Fill free rows with waiting samples; False when nothing is left to do."""
        free = self.max_rows - len(self.rows)
        if self.waiting and free:
            joining = [self.waiting.pop() for _ in range(min(free, len(self.waiting)))]
            self._prefill(sorted({p for p, _ in joining} - set(self.live)))
            self._join(joining)
            still_waiting = {p for p, _ in self.waiting}
            self.fresh = {p: logits for p, logits in self.fresh.items() if p in still_waiting}
        return bool(self.rows)

    def _prefill(self, new: list[int]) -> None:
        if not new:
            return
        width = max(len(self.prompts[p].ids) for p in new)
        per_chunk = max(1, _PREFILL_TOKENS // width)
        for at in range(0, len(new), per_chunk):
            chunk = new[at : at + per_chunk]
            ids = [self.prompts[p].ids for p in chunk]
            length_U = torch.tensor([len(i) for i in ids], device=self.device)
            padded = torch.tensor([i + [0] * (width - len(i)) for i in ids], device=self.device)
            logits, keys, values = self.decoder.prefill(padded, length_U)
            self.fresh |= {p: logits[j] for j, p in enumerate(chunk)}
            self._append_prefix(keys, values)
            self.live += chunk

    def _append_prefix(self, keys: Tensor, values: Tensor) -> None:
        if self.prefix_k is None or self.prefix_v is None:
            self.prefix_k, self.prefix_v = keys, values
            return
        width = max(self.prefix_k.shape[-1], keys.shape[-1])
        pad_k = [torch.nn.functional.pad(k, (0, width - k.shape[-1])) for k in (self.prefix_k, keys)]
        pad_v = [torch.nn.functional.pad(v, (0, 0, 0, width - v.shape[-2])) for v in (self.prefix_v, values)]
        self.prefix_k, self.prefix_v = torch.cat(pad_k, 1), torch.cat(pad_v, 1)

    def _join(self, joining: list[tuple[int, int]]) -> None:
        """Sample each newcomer's first token from its prompt's logits and append its row."""
        seeds = [row_seed(self.seed, self.row_names[p], s) for p, s in joining]
        uniform = torch.stack([torch.rand(self.limit, generator=torch.Generator().manual_seed(s)) for s in seeds])
        uniform = uniform.to(self.device)
        logits = torch.stack([self.fresh[p] for p, _ in joining])
        token_R, logp_R, model_R = self._choose(logits, uniform[:, 0])
        rows = [_Row(p, s) for p, s in joining]
        columns = zip(rows, token_R.tolist(), logp_R.tolist(), model_R.tolist(), strict=True)
        for row, token, logp, logp_model in columns:
            self._append_token(row, token, logp, logp_model)
        length_R = torch.tensor([len(self.prompts[p].ids) for p, _ in joining], device=self.device)
        self.rows += rows
        self.token_R = torch.cat([self.token_R, token_R])
        self.start_R = torch.cat([self.start_R, torch.full_like(length_R, self.column)])
        self.prompt_length_R = torch.cat([self.prompt_length_R, length_R])
        self.uniform_RN = torch.cat([self.uniform_RN, uniform])

    def _choose(self, logits: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.sampling.greedy:
            return greedy_tokens(logits)
        return sample_tokens(logits, uniform_R, self.sampling.temperature, self.sampling.top_p)

    # ---- decoding ----------------------------------------------------

    def run_steps(self) -> None:
        """Decode a few tokens for every row without looking at them, then hand them to their rows."""
        longest = max(self.limit - len(row.tokens) for row in self.rows)
        steps = min(_STEPS_BETWEEN_CHECKS, longest)
        self._slide_window(steps)
        state = self._state(self.column + steps)
        chosen: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(steps):
            age_R = self.column - self.start_R
            state.column = self.column
            logits = self.decoder.step(self.token_R, self.prompt_length_R + age_R, state)
            # a row that has used up its tokens idles on its last uniform number; its tokens are thrown away
            uniform_R = self.uniform_RN.gather(1, (age_R + 1).clamp(max=self.limit - 1)[:, None])[:, 0]
            chosen.append(self._choose(logits, uniform_R))
            self.token_R = chosen[-1][0]
            self.column += 1
        if not chosen:
            return
        tokens, logps, models = (torch.stack([c[k] for c in chosen], 1).tolist() for k in range(3))
        for r, row in enumerate(self.rows):
            for token, logp, logp_model in zip(tokens[r], logps[r], models[r], strict=True):
                if row.finish is not None:
                    break
                self._append_token(row, token, logp, logp_model)

    def _append_token(self, row: _Row, token: int, logp: float, logp_model: float) -> None:
        row.tokens.append(token)
        row.logp_sampled.append(logp)
        row.logp_model.append(logp_model)
        if token in self.engine.eos_ids or (self.sampling.stop and self._hit_stop_string(row)):
            row.finish = Finish.STOP
        elif len(row.tokens) >= self.limit:
            row.finish = Finish.LENGTH

    def _hit_stop_string(self, row: _Row) -> bool:
        # a token holds at least part of a character, and a character at most four byte tokens
        window = max(len(s) for s in self.sampling.stop) * 4 + 4
        tail = decode(self.engine.tokenizer, row.tokens[-window:])
        return any(s in tail for s in self.sampling.stop)

    def _slide_window(self, steps: int) -> None:
        if self.column + steps <= self.capacity:
            return
        first = int(self.start_R.min())
        width, n = self.column - first, len(self.rows)
        # clone: source and destination overlap
        self.suffix_k[:, :n, ..., :width] = self.suffix_k[:, :n, ..., first : self.column].clone()
        self.suffix_v[:, :n, :, :width] = self.suffix_v[:, :n, :, first : self.column].clone()
        self.start_R = self.start_R - first
        self.column = width

    def _state(self, end: int) -> DecodeState:
        """Masks and the row -> grid map for the next steps, up to column `end`."""
        assert self.prefix_k is not None
        assert self.prefix_v is not None
        dtype, device = self.decoder.dtype, self.device
        seen: dict[int, int] = {}
        place: list[tuple[int, int]] = []
        index = {p: u for u, p in enumerate(self.live)}
        for row in self.rows:
            seen[row.prompt] = seen.get(row.prompt, -1) + 1
            place.append((index[row.prompt], seen[row.prompt]))
        n = max(seen.values()) + 1
        slots = [u * n + j for u, j in place]
        full = slots == list(range(len(self.live) * n))
        lengths = [len(self.prompts[p].ids) for p in self.live]
        width = self.prefix_k.shape[-1]
        prefix_mask = None
        if min(lengths) < width:
            beyond = torch.arange(width, device=device) >= torch.tensor(lengths, device=device)[:, None]
            prefix_mask = torch.zeros(beyond.shape, dtype=dtype, device=device).masked_fill_(beyond, float("-inf"))
            prefix_mask = prefix_mask.view(len(lengths), 1, 1, width)
        first = int(self.start_R.min())
        suffix_mask = None
        if bool((self.start_R > first).any()):
            before = torch.arange(first, end, device=device) < self.start_R[:, None]
            suffix_mask = torch.zeros(before.shape, dtype=dtype, device=device).masked_fill_(before, float("-inf"))
            suffix_mask = suffix_mask.view(len(self.rows), 1, 1, end - first)
        slot_R = None if full else torch.tensor(slots, device=device)
        return DecodeState(
            self.prefix_k,
            self.prefix_v,
            prefix_mask,
            self.suffix_k,
            self.suffix_v,
            suffix_mask,
            slot_R,
            n,
            first,
            self.column,
        )

    # ---- leaving -----------------------------------------------------

    def collect_finished(self) -> list[_Row]:
        """Take finished rows out and close the gaps they leave."""
        finished = [row for row in self.rows if row.finish is not None]
        if not finished:
            return []
        keep = [r for r, row in enumerate(self.rows) if row.finish is None]
        self.rows = [self.rows[r] for r in keep]
        index = torch.tensor(keep, dtype=torch.long, device=self.device)
        self.token_R, self.start_R = self.token_R[index], self.start_R[index]
        self.prompt_length_R, self.uniform_RN = self.prompt_length_R[index], self.uniform_RN[index]
        if not keep:
            self.column = 0
        else:
            first = int(self.start_R.min())
            for layer in range(self.decoder.num_layers):  # layer by layer: the gathered copy stays small
                for cache in (
                    self.suffix_k[layer, ..., first : self.column],
                    self.suffix_v[layer, :, :, first : self.column],
                ):
                    cache[: len(keep)] = cache[index]
        self._drop_idle_prompts()
        return finished

    def _drop_idle_prompts(self) -> None:
        assert self.prefix_k is not None
        assert self.prefix_v is not None
        used = {row.prompt for row in self.rows} | set(self.fresh)
        if used >= set(self.live):
            return
        if not used:
            self.live, self.prefix_k, self.prefix_v = [], None, None
            return
        keep = [u for u, p in enumerate(self.live) if p in used]
        self.live = [self.live[u] for u in keep]
        width = max(len(self.prompts[p].ids) for p in self.live)
        index = torch.tensor(keep, device=self.device)
        # contiguous: views of the kept part are taken in every decode step
        self.prefix_k = self.prefix_k[:, index][..., :width].contiguous()
        self.prefix_v = self.prefix_v[:, index][..., :width, :].contiguous()
