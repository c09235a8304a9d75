"""TP-GRPO's advantages: the table of the two propositions, its limits, and what it must never pay."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prm.thoughts import merge
from tests.trainer.advantages.batches import run
from tests.trainer.advantages.thought_sums import by_cumulative_sum, thought_rewards
from trainer.advantages.base import AdvantageInputs
from trainer.combinations import warnings
from trainer.compose import load_recipe
from verifiers.errors import ConfigError

# per response: right or wrong, and the labels of its steps before the answer
RESPONSES = st.lists(st.tuples(st.booleans(), st.lists(st.booleans(), max_size=6)), min_size=2, max_size=6)


def inputs_of(responses, lengths=None):
    """One group; each step has as many tokens as `lengths` says (default 1); the answer is a key step."""
    labels, counts = [], []
    for n, (_, steps) in enumerate(responses):
        repeat = (lengths or {}).get(n, [1] * (len(steps) + 1))
        tokens = [key for key, count in zip([*steps, True], repeat, strict=True) for _ in range(count)]
        labels += tokens
        counts.append(len(tokens))
    correct_N = torch.tensor([right for right, _ in responses])
    return AdvantageInputs(
        correct_N.double(), torch.zeros(len(responses), dtype=torch.long), torch.tensor(counts),
        token_label_R=torch.tensor(labels).long(), correct_N=correct_N,
    )  # fmt: skip


def grpo_of(inputs):
    return run("grpo", inputs)


@given(RESPONSES, st.floats(0, 3))
def test_the_table_is_the_sum_of_the_thoughts_rewards(responses, alpha):
    inputs = inputs_of(responses)
    rows = run("tp_grpo", inputs, alpha=alpha).split(inputs.length_N.tolist())
    outcome = [float(row[0]) for row in grpo_of(inputs).split(inputs.length_N.tolist())]
    accuracy = float(inputs.correct_N.double().mean())
    for (right, steps), rhat, row in zip(responses, outcome, rows, strict=True):
        labels = [*steps, True]
        sums = by_cumulative_sum(thought_rewards(labels, right, rhat, alpha * accuracy))
        expected = [total for total, t in zip(sums, merge(labels), strict=True) for _ in range(t.first, t.last + 1)]
        assert row.tolist() == pytest.approx(expected, abs=1e-6)


@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=6)), min_size=2)
)
def test_splitting_a_thought_into_more_steps_with_its_label_changes_nothing(rows):
    responses = [(right, [key for key, _ in steps]) for right, steps in rows]
    lengths = {n: [*(count for _, count in steps), 2] for n, (_, steps) in enumerate(rows)}
    whole = run("tp_grpo", inputs_of(responses)).tolist()
    split = run("tp_grpo", inputs_of(responses, lengths)).tolist()
    repeats = [count for n in range(len(responses)) for count in lengths[n]]
    assert split == [value for value, count in zip(whole, repeats, strict=True) for _ in range(count)]


def test_where_few_are_right_every_token_of_a_right_response_tends_to_its_outcome():
    gaps = []
    for others in (3, 31, 511):
        inputs = inputs_of([(True, [True, False, True]), *[(False, [])] * others])
        gaps.append(float((run("tp_grpo", inputs) - grpo_of(inputs))[:4].abs().max()))
    assert gaps == pytest.approx([1 / 4, 1 / 32, 1 / 512])


@given(RESPONSES)
def test_alpha_0_is_grpo_on_right_responses(responses):
    inputs = inputs_of(responses)
    right_R = inputs.correct_N.repeat_interleave(inputs.length_N)
    assert torch.equal(run("tp_grpo", inputs, alpha=0.0)[right_R], grpo_of(inputs)[right_R])


@given(RESPONSES)
def test_wrong_responses_are_never_paid(responses):
    inputs = inputs_of(responses)
    wrong_R = ~inputs.correct_N.repeat_interleave(inputs.length_N)
    assert float(run("tp_grpo", inputs)[wrong_R].clamp(min=0).sum()) == 0.0


def test_where_all_are_right_wrong_thoughts_alone_have_an_advantage_of_minus_alpha():
    inputs = inputs_of([(True, [True, False, False]), (True, [False]), (True, [])])
    assert run("tp_grpo", inputs, alpha=0.5).tolist() == [0.0, -0.5, -0.5, 0.0, -0.5, 0.0, 0.0]


def test_where_nobody_is_right_there_is_no_advantage():
    assert run("tp_grpo", inputs_of([(False, [True, False]), (False, [False])])).tolist() == [0.0] * 5


@given(RESPONSES)
def test_labels_that_are_all_key_are_grpo(responses):
    inputs = inputs_of([(right, [True] * len(steps)) for right, steps in responses])
    assert torch.equal(run("tp_grpo", inputs), grpo_of(inputs))


def test_the_accuracy_is_that_of_the_own_group():
    """A batch mean, or one over a micro-batch, would take 2/3 or 1 for the first group."""
    one = inputs_of([(True, [False]), (False, [])])
    two = inputs_of([(True, []), (True, []), (True, []), (False, [])])
    both = AdvantageInputs(
        torch.cat([one.reward_N, two.reward_N]), torch.tensor([7, 7, 3, 3, 3, 3]),
        torch.cat([one.length_N, two.length_N]),
        token_label_R=torch.cat([one.token_label_R, two.token_label_R]),
        correct_N=torch.cat([one.correct_N, two.correct_N]),
    )  # fmt: skip
    together = run("tp_grpo", both)
    assert torch.equal(together, torch.cat([run("tp_grpo", one), run("tp_grpo", two)]))
    assert float(together[1] - together[0]) == pytest.approx(0.5)


def test_the_outcome_is_standardised_and_the_process_reward_is_not():
    inputs = inputs_of([(True, [False]), (False, [])])
    scaled = replace(inputs, reward_N=inputs.reward_N * 100)
    torch.testing.assert_close(run("tp_grpo", scaled), run("tp_grpo", inputs), rtol=1e-4, atol=1e-4)


# ---- in a recipe -------------------------------------------------

WITHOUT_ALPHA = "~objective.advantage.alpha"


def test_without_a_source_of_labels_the_recipe_is_refused():
    with pytest.raises(ConfigError, match="tp_grpo needs token_label_R") as caught:
        load_recipe("tp_grpo_chain", ["sources=[{kind: rule}]"])
    assert "thoughts" in (caught.value.fix or "")


def test_groups_in_which_all_are_right_may_not_be_dropped():
    with pytest.raises(ConfigError, match=r"zero_variance\.drop=true leaves out groups"):
        load_recipe("tp_grpo_chain", ["objective.zero_variance.drop=true"])


def test_one_sample_a_prompt_has_nothing_to_compare_with():
    with pytest.raises(ConfigError, match="samples_per_prompt must be at least 2"):
        load_recipe("tp_grpo_chain", ["rollout.samples_per_prompt=1"])


def test_labels_that_nobody_uses_are_warned_about():
    (line,) = warnings(load_recipe("tp_grpo_chain", ["objective.advantage.kind=grpo", WITHOUT_ALPHA]))
    assert "sources.1 (thoughts) labels tokens" in line


def test_rounds_on_samples_of_older_weights_compose_and_are_what_the_gpu_recipe_has():
    config = load_recipe("tp_grpo_math")
    assert (config.train.max_stale_steps, config.objective.mismatch.kind) == (49, "bypass")
    rounds = ["train.max_stale_steps=9", "objective.mismatch.kind=bypass"]
    assert load_recipe("tp_grpo_chain", rounds).train.max_stale_steps == 9
    with pytest.raises(ConfigError, match="older policy"):
        load_recipe("tp_grpo_chain", rounds[:1])
