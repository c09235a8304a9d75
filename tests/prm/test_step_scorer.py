"""Step and outcome reward models: where they read, what they are trained on, that all of it is in the checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data import encode, load_examples
from data.example import Example
from data.template import TemplateOptions
from prm.cotrained import CoTrained
from prm.signal import SOURCES, Kept, SourceContext
from prm.step_labels import MonteCarloOptions, labels_from_file, monte_carlo
from prm.steps import StepOptions, StepSplitter
from rollout.engine import Prompt, SamplingParams
from rollout.options import OptimConfig
from rollout.trajectory import Finish, Trajectory
from tests.helpers import EOS, make_config, model_setup, sharpen, source_context, tokenizer, trajectory
from verifiers.errors import ConfigError, DataError, ModelError
from verifiers.options import parse_options
from verifiers.runner import Runner
from verifiers.verdict import Status, Verdict

OPTIM = {"lr": 1e-2}
TRAIN = {"prompts": 4, "samples_per_prompt": 2, "steps": 3, "solutions_per_step": 4}
CONFIG = {"rollout.max_response_tokens": 24, "data.train": {"kind": "chain", "count": 12}}


@pytest.fixture(scope="module")
def runner():
    with Runner("exact", {"marker": "#", "numeric": True}) as made:
        yield made


def chain(count: int = 12, **options: Any) -> list[Example]:
    return load_examples(
        "chain", {"count": count, "modulus": 5, "min_operands": 3, "max_operands": 3, **options}, key=""
    )


def ids_of(text: str) -> list[int]:
    return list(tokenizer()(text)["input_ids"])


def answered(example: Example, text: str, group: int = 0, sample: int = 0, cut: bool = False) -> Trajectory:
    ids = ids_of(text) if cut else [*ids_of(text), EOS]
    finish = Finish.LENGTH if cut else Finish.STOP
    prompt = encode(example, TemplateOptions(kind="plain"), tokenizer())
    return trajectory(prompt, ids, group, sample, text=text, finish=finish)


class Policy:
    """Answers by rule: `right` finishes with the gold, otherwise with a wrong one. Remembers what it was asked."""

    def __init__(self, examples: list[Example], right: bool):
        self.by_prompt = {tuple(encode(e, TemplateOptions(kind="plain"), tokenizer())): e for e in examples}
        self.right, self.asked = right, list[Prompt]()

    def __call__(self, prompts, samples, sampling: SamplingParams, seed: int) -> list[Trajectory]:
        self.asked += prompts
        return [self.answer(p, s) for p in prompts for s in range(samples)]

    def answer(self, prompt: Prompt, sample: int) -> Trajectory:
        length = next(n for n in range(1, len(prompt.ids) + 1) if tuple(prompt.ids[:n]) in self.by_prompt)
        example = self.by_prompt[tuple(prompt.ids[:length])]
        number = example.gold if self.right else str((int(example.gold) + 1) % 5)
        text = f"#{number}" if len(prompt.ids) > length else f"{example.gold}\n#{number}"
        return trajectory(prompt.ids, [*ids_of(text), EOS], prompt.group, sample, text=text)


def context(runner: Runner, examples: list[Example], right: bool = True, **overrides: Any) -> SourceContext:
    made = source_context(runner, make_config(CONFIG | overrides), Policy(examples, right))
    made.train_examples = examples
    made.prompt_ids = {e.id: encode(e, TemplateOptions(kind="plain"), tokenizer()) for e in examples}
    return made


def source(kind: str, made: SourceContext, **options: Any) -> Any:
    cls = SOURCES.get(kind)
    return cls(parse_options(cls.Options, options, "sources.0"), made)


def kept_of(examples: list[Example], texts: list[str], step: int = 0, cut: bool = False) -> Kept:
    trajectories = [answered(e, t, g, cut=cut) for g, (e, t) in enumerate(zip(examples, texts, strict=True))]
    right = [t.endswith(f"#{e.gold}") and not cut for e, t in zip(examples, texts, strict=True)]
    verdicts = [Verdict(float(r), Status.CORRECT if r else Status.WRONG, "") for r in right]
    return Kept(trajectories, examples, torch.tensor(right).float(), verdicts, step)


# ---- where the score is read ---------------------------------------


def test_a_scalar_head_read_after_sees_the_token_and_nothing_later():
    config = make_config()
    model = CoTrained(model_setup(config), "scalar", None, read="after")
    sharpen(model.trunk)
    before = CoTrained(model_setup(config), "scalar", None)
    before.packed.model, before.packed.head = model.packed.model, model.packed.head

    def values(of: CoTrained, *ids: int) -> torch.Tensor:
        return of.outputs([trajectory([7, 8], list(ids))])[0]

    torch.testing.assert_close(values(model, 9, 10, 11)[:2], values(model, 9, 10, 99)[:2])
    assert not torch.allclose(values(model, 9, 10, 11)[2], values(model, 9, 10, 99)[2])
    assert torch.allclose(values(before, 9, 10, 11)[2], values(before, 9, 10, 99)[2])  # the other reading: one off
    torch.testing.assert_close(values(model, 9, 10, 11)[:2], values(before, 9, 10, 11)[1:])


def test_a_step_is_scored_by_the_state_after_its_last_token(runner):
    examples = chain(2)
    prm = source("step_prm", context(runner, examples), optim=OPTIM, update_every=1)
    sharpen(prm.scorer.model.trunk)
    sharpen(prm.scorer.model.head)
    kept = kept_of(examples, ["1+2\n3\n#3", "#1"])
    signal = prm.credit(kept)
    logits = prm.scorer.model.outputs(kept.trajectories)[0]
    expected = torch.sigmoid(logits[[3, 5, 8]])  # the two line breaks, the end token
    torch.testing.assert_close(torch.tensor(signal.labels["step_scores"][0]), expected)
    torch.testing.assert_close(signal.token_reward[0][[3, 5, 8]], expected)


# ---- placement -----------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "clip", "delta", "clip_delta"])
def test_rewards_stand_at_the_last_tokens_of_steps_only(runner, kind):
    examples = chain(3)
    refine = {"kind": kind} | ({"eta": 0.95} if "clip" in kind else {})
    oracle = source("step_oracle", context(runner, examples), refine=refine)
    signal = oracle.credit(kept_of(examples, ["1+2\n3\n4\n#3", "#1", ""]))
    ends = [[3, 5, 7, 10], [2], []]
    assert signal.token_reward is not None
    for placed, at, tokens in zip(signal.token_reward, ends, (11, 3, 1), strict=True):
        assert placed.shape == (tokens,)
        assert set(placed.nonzero().flatten().tolist()) <= set(at)
    assert signal.token_reward[0].any()
    if "delta" in kind:
        assert signal.token_reward[0][10] == 0
        assert not signal.token_reward[1].any()  # a single step
    assert not signal.outcome_N.any()


def test_a_truncated_solution_keeps_its_step_rewards_and_earns_nothing_for_the_last_step(runner):
    examples = chain(1)
    oracle = source("step_oracle", context(runner, examples), refine={"kind": "delta"}, noise_std=0.0)
    signal = oracle.credit(kept_of(examples, ["1\n2\n3"], cut=True))
    assert signal.token_reward is not None
    assert signal.token_reward[0].tolist()[-1] == 0
    assert float(signal.token_reward[0].sum()) == pytest.approx(signal.labels["step_scores"][0][0])


# ---- the noisy oracle ----------------------------------------------


def test_the_oracle_scores_true_and_false_lines_around_their_means_and_a_prefix_always_alike(runner):
    examples = chain(12, seed=3)
    made = context(runner, examples)
    texts = [f"{e.gold}\n{(int(e.gold) + 1) % 5}\n#{e.gold}" for e in examples]
    kept = kept_of(examples, texts)
    exact = source("step_oracle", made, noise_std=0.0).credit(kept)
    assert all(s == pytest.approx([0.9, 0.2, 0.9]) for s in exact.labels["step_scores"])
    assert exact.metrics["auc"] == 1.0
    assert exact.metrics["true_share"] == pytest.approx(2 / 3)
    noisy = [source("step_oracle", made, noise_std=0.1).credit(kept).labels["step_scores"] for _ in range(2)]
    assert noisy[0] == noisy[1]
    assert len({s for scores in noisy[0] for s in scores}) > 20
    assert all(0 <= s <= 1 for scores in noisy[0] for s in scores)


def test_the_oracle_needs_steps_that_can_be_checked(runner):
    plain = Example("x", chain(1)[0].prompt, "1")
    with pytest.raises(ConfigError, match="checked by program"):
        source("step_oracle", context(runner, [plain]))
    with pytest.raises(ConfigError, match="no oracle"):
        source("step_prm", context(runner, [plain]), optim=OPTIM, train=TRAIN, labels="oracle")


# ---- labels --------------------------------------------------------


@pytest.mark.parametrize("estimate", ["hard", "soft"])
@pytest.mark.parametrize(("right", "value"), [(True, 1.0), (False, 0.0)])
def test_completions_by_a_policy_that_is_always_right_or_wrong_give_1_or_0(runner, estimate, right, value):
    examples = chain(3)
    made = context(runner, examples, right)
    trajectories = [answered(e, f"1\n2\n#{e.gold}", g) for g, e in enumerate(examples)]
    splitter = StepSplitter(StepOptions(), tokenizer())
    steps = [splitter.split(t.text, t.response_ids) for t in trajectories]
    options = MonteCarloOptions(completions=3, estimate=estimate)
    labels = monte_carlo(made, trajectories, examples, steps, options, seed=0)
    assert labels == [[value, value, 1.0]] * 3  # the last step is the response's own verdict


def test_a_policy_that_is_sometimes_right_is_1_by_the_hard_estimate_and_its_share_by_the_soft(runner):
    examples = chain(1)
    made = context(runner, examples)
    right, wrong = Policy(examples, True), Policy(examples, False)
    made.generate = lambda prompts, n, sampling, seed: [
        (right if s == 0 else wrong).answer(p, s) for p in prompts for s in range(n)
    ]
    t = answered(examples[0], "1\n#9")
    steps = [StepSplitter(StepOptions(), tokenizer()).split(t.text, t.response_ids)]
    estimates = {
        e: monte_carlo(made, [t], examples, steps, MonteCarloOptions(completions=4, estimate=e), 0)[0]
        for e in ("hard", "soft")
    }
    assert estimates == {"hard": [1.0, 0.0], "soft": [0.25, 0.0]}


def test_equal_prefixes_are_completed_once_from_the_tokens_that_were_sampled(runner):
    examples = chain(1)
    made = context(runner, examples)
    trajectories = [answered(examples[0], f"1\n#{n}", 0, n) for n in range(3)]
    splitter = StepSplitter(StepOptions(), tokenizer())
    steps = [splitter.split(t.text, t.response_ids) for t in trajectories]
    monte_carlo(made, trajectories, examples * 3, steps, MonteCarloOptions(completions=2), 0)
    assert [p.ids for p in made.generate.asked] == [[*trajectories[0].prompt_ids, *ids_of("1\n")]]


def test_a_completion_beyond_the_limit_of_a_response_is_wrong(runner):
    examples = chain(1)
    made = context(runner, examples, **{"rollout.max_response_tokens": 6})  # "1\n" and "#3<eos>" are 5, "11\n\n" 7
    splitter = StepSplitter(StepOptions(), tokenizer())
    labels = {}
    for text in ("1\n#", "11\n\n#"):
        t = answered(examples[0], text, cut=True)
        steps = [splitter.split(t.text, t.response_ids)]
        labels[text] = monte_carlo(made, [t], examples, steps, MonteCarloOptions(completions=2), 0)[0]
    assert labels == {"1\n#": [1.0, 0.0], "11\n\n#": [1.0, 0.0, 0.0]}


def test_given_labels_stand_at_the_last_tokens_of_the_given_steps(runner, tmp_path: Path):
    examples = chain(2)
    made = context(runner, examples)
    rows = [
        {"question": examples[0].question, "steps": ["1+", "2\n", "#3"], "labels": [1, None, 0]},
        {"example_id": examples[1].id, "steps": ["#1"], "labels": [0.5]},
    ]
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    first, second = labels_from_file(str(file), made, StepSplitter(StepOptions(), tokenizer()))
    assert first.response_ids == [*ids_of("1+2\n#3"), EOS]
    assert [(i, v) for i, v in enumerate(first.target_T.tolist()) if not math.isnan(v)] == [(1, 1.0), (6, 0.0)]
    assert second.target_T.tolist()[2] == 0.5
    assert second.prompt_ids == made.prompt_ids[examples[1].id]


@pytest.mark.parametrize(
    "row", ["{", '{"question": "?", "steps": ["1"], "labels": [1]}', '{"steps": [], "labels": []}']
)
def test_a_row_that_cannot_be_used_is_named(runner, tmp_path: Path, row):
    file = tmp_path / "labels.jsonl"
    file.write_text(row)
    with pytest.raises(DataError, match=r"labels\.jsonl, line 1"):
        labels_from_file(str(file), context(runner, chain(1)), StepSplitter(StepOptions(), tokenizer()))


# ---- training ------------------------------------------------------


@pytest.mark.parametrize("labels", ["oracle", "monte_carlo"])
def test_the_training_before_the_rl_separates_true_from_false_lines(runner, labels):
    examples = chain(12)
    made = context(runner, examples, right=labels == "monte_carlo")
    train = TRAIN | {"prompts": 12, "steps": 30}
    prm = source("step_prm", made, optim=OPTIM, train=train, labels=labels, monte_carlo={"completions": 2})
    prm.start_from(CoTrained(made.models, "lm", None).weights())
    signal = prm.credit(kept_of(examples, [f"{e.gold}\n#{e.gold}" for e in examples]))
    assert signal.metrics["trained/labels"] == 24 * 2
    assert signal.metrics["trained/accuracy"] >= (0.9 if labels == "monte_carlo" else 0.6)
    if labels == "monte_carlo":  # everything was right
        assert signal.metrics["trained/label_mean"] == 1
        assert signal.metrics["mean_score"] > 0.9


def test_an_outcome_model_learns_verdicts_and_scores_the_end_of_a_response(runner):
    examples = chain(6)
    orm = source("orm", context(runner, examples), optim=OPTIM, update_every=1)
    texts = [f"#{e.gold}" if i % 2 else "#wrong" for i, e in enumerate(examples)]
    first = orm.credit(kept_of(examples, texts))
    assert first.token_reward is None
    assert first.outcome_N.tolist() == pytest.approx([0.5] * 6)  # a head of zeros
    for step in range(20):
        kept = kept_of(examples, texts, step)
        metrics = orm.learn(kept, orm.credit(kept))
    assert metrics["auc"] == 1.0
    assert metrics["loss"] < 0.3
    assert metrics["calibration_error"] < 0.3


def test_under_permuted_outcomes_an_orm_asks_nobody_who_is_right():
    """Labels of the verifier would leak into the control that must learn from nothing."""
    examples = chain(2)
    texts = [f"#{examples[0].gold}", "#x"]
    orm = source("orm", context(None, examples), optim=OPTIM, update_every=1)  # no verifier to ask
    kept = replace(kept_of(examples, texts), verdicts=[], outcome_N=torch.tensor([0.0, 1.0]), permuted=True)
    metrics = orm.learn(kept, orm.credit(kept))
    assert metrics["true_share"] == 0.5
    assert "loss" in metrics


def test_the_role_of_an_outcome_model_is_its_phase(runner):
    made = context(runner, chain(1))
    phases = {role: source("orm", made, optim=OPTIM, update_every=1, role=role).phase for role in ("outcome", "credit")}
    assert phases == {"outcome": "judge", "credit": "credit"}


def test_updates_come_every_so_many_rounds_and_a_frozen_model_never_changes(runner):
    examples = chain(2)
    prm = source("step_prm", context(runner, examples), optim=OPTIM, update_every=2, labels="oracle")
    learnt = []
    for step in range(4):
        kept = kept_of(examples, ["1\n#1", "#2"], step)
        learnt.append("loss" in prm.learn(kept, prm.credit(kept)))
    assert learnt == [False, True, False, True]


def test_a_scorer_loaded_from_a_folder_scores_as_the_one_that_was_saved(runner, tmp_path: Path):
    examples = chain(2)
    made = context(runner, examples)
    trained = source("step_prm", made, optim=OPTIM, update_every=1)
    sharpen(trained.scorer.model.trunk)
    sharpen(trained.scorer.model.head)
    trained.scorer.model.export_hf(tmp_path)
    loaded = source("step_prm", made, path=str(tmp_path))
    loaded.start_from({})
    kept = kept_of(examples, ["1\n#1", "#2"])
    assert loaded.credit(kept).labels == trained.credit(kept).labels
    assert loaded.learn(kept, loaded.credit(kept)) == {}
    other = context(
        runner, examples, **{"model.scratch": make_config().model.scratch.model_dump() | {"hidden_size": 16}}
    )
    with pytest.raises(ModelError, match="another model"):
        source("step_prm", other, path=str(tmp_path)).start_from({})
    with pytest.raises(ModelError, match="no weights"):
        source("step_prm", made, path=str(tmp_path / "none")).start_from({})


@pytest.mark.parametrize("options", [{}, {"path": "x", "train": TRAIN, "optim": OPTIM}, {"train": TRAIN},
                                     {"path": "x", "optim": OPTIM}, {"update_every": 1}])  # fmt: skip
def test_a_model_that_nothing_or_two_things_train_is_refused(runner, options):
    with pytest.raises(ConfigError, match=r"train|optim"):
        source("step_prm", context(runner, chain(1)), **options)


# ---- resume --------------------------------------------------------


@pytest.mark.parametrize("kind", ["step_prm", "orm"])
def test_a_restored_source_goes_on_exactly(runner, tmp_path: Path, kind):
    examples = chain(4)
    made = context(runner, examples)
    options: dict[str, Any] = {"optim": OPTIM, "train": TRAIN, "update_every": 1}
    if kind == "step_prm":
        options |= {"labels": "oracle", "refine": {"kind": "clip_delta", "eta": "running_mean"}}
    texts = ["1\n#1", "2\n3\n#0", "#2", f"#{examples[3].gold}"]

    def go_on(of: Any, steps: range) -> list[Any]:
        said = []
        for step in steps:
            kept = kept_of(examples, texts, step)
            signal = of.credit(kept)
            said.append((signal.labels, signal.metrics, of.learn(kept, signal)))
            if signal.token_reward is not None:
                said.append([r.tolist() for r in signal.token_reward])
        return said

    whole = source(kind, made, **options)
    whole.start_from(CoTrained(made.models, "lm", None).weights())
    go_on(whole, range(2))
    whole.scorer.model.export_hf(tmp_path)
    saved = tmp_path / "state.pt"
    torch.save({"source": whole.state_dict(), "model": whole.scorer.model.state_dict()}, saved)
    resumed = source(kind, made, **options)
    state = torch.load(saved)
    resumed.load_state_dict(state["source"])
    resumed.scorer.model.load(tmp_path, state["model"])
    assert go_on(resumed, range(2, 5)) == go_on(whole, range(2, 5))
    assert OptimConfig(**OPTIM).lr == resumed.scorer.model.optimizer.param_groups[0]["lr"]
