"""What an objective may be made of: refused before compute, warned about, or silent."""

import pytest

from trainer.combinations import warnings
from trainer.compose import load_recipe
from verifiers.errors import ConfigError

KEEP_FLAT = "objective.zero_variance.drop=false"


def advantage(kind: str) -> list[str]:
    return [f"objective.advantage={{kind: {kind}}}"]


@pytest.mark.parametrize(("kind", "need"), [("gae", "value_R")])
def test_an_estimator_whose_input_nothing_gives_is_refused_before_compute(kind: str, need: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind} needs {need}"):
        load_recipe("quickstart", [*advantage(kind), KEEP_FLAT])


@pytest.mark.parametrize(
    "chosen",
    ["{kind: reinforce_pp}", "{kind: stable_reinforce}", "{kind: raft}", "{kind: raft, select: best}",
     "{kind: multi_stream, gammas: [1.0]}"],
)  # fmt: skip
def test_flat_groups_are_not_dropped_where_they_teach(chosen: str) -> None:
    with pytest.raises(ConfigError, match=r"zero_variance\.drop=true leaves out") as caught:
        load_recipe("quickstart", [f"objective.advantage={chosen}"])
    assert "objective.zero_variance.drop=false" in (caught.value.fix or "")
    load_recipe("quickstart", [f"objective.advantage={chosen}", KEEP_FLAT])


@pytest.mark.parametrize("chosen", ["{kind: rloo}", "{kind: raft, select: mixed_groups}", "{kind: opo}"])
def test_flat_groups_may_be_dropped_where_they_teach_nothing(chosen: str) -> None:
    assert load_recipe("quickstart", [f"objective.advantage={chosen}"]).objective.zero_variance.drop


@pytest.mark.parametrize(
    "chosen",
    ["{kind: grpo}", "{kind: dr_grpo}", "{kind: rloo}", "{kind: reinforce_pp_baseline}", "{kind: opo}", "{kind: gpg}",
     "{kind: passk_grpo}", "{kind: raft, select: mixed_groups}"],
)  # fmt: skip
def test_estimators_that_compare_samples_need_two(chosen: str) -> None:
    with pytest.raises(ConfigError, match="samples_per_prompt must be at least 2"):
        load_recipe("quickstart", [f"objective.advantage={chosen}", "rollout.samples_per_prompt=1", KEEP_FLAT])


def test_estimators_without_a_group_take_one_sample() -> None:
    overrides = [*advantage("reinforce_pp"), "rollout.samples_per_prompt=1", KEEP_FLAT]
    assert load_recipe("quickstart", overrides).rollout.samples_per_prompt == 1


@pytest.mark.parametrize("loss", ["gspo", "gmpo", "sapo", "stable_reinforce"])
def test_a_loss_over_sequences_with_the_token_mean_is_warned_about(loss: str) -> None:
    part = f"objective.loss={{kind: {loss}}}"
    (line,) = warnings(load_recipe("quickstart", [part]))
    assert f"objective.loss.kind={loss} is published with objective.reduce=sequence" in line
    assert warnings(load_recipe("quickstart", [part, "objective.reduce=sequence"])) == []
    assert warnings(load_recipe("quickstart", [part, "objective.reduce=sequence_sum"])) == []


def test_a_loss_without_a_ratio_and_several_optimizer_steps_are_warned_about() -> None:
    (line,) = warnings(load_recipe("grpo_math", ["objective=rloo"]))
    assert "has no ratio" in line
    assert warnings(load_recipe("rloo_math")) == []


def test_discounts_and_streams_are_counted_before_compute() -> None:
    two = "objective.advantage={kind: multi_stream, gammas: [1.0, 0.99]}"
    with pytest.raises(ConfigError, match="2 discounts for 1 reward streams"):
        load_recipe("quickstart", [two, KEEP_FLAT])
    load_recipe("quickstart", [two, KEEP_FLAT, "objective.shaping=[{kind: repetition}]"])
    soft = "objective.overlong={kind: soft, buffer_tokens: 8}"
    with pytest.raises(ConfigError, match="no reward stream"):
        load_recipe("quickstart", [two, KEEP_FLAT, "objective.shaping=[{kind: repetition}]", soft])


def test_a_dense_penalty_needs_an_estimator_that_uses_it() -> None:
    with pytest.raises(ConfigError, match="does not use them"):
        load_recipe("quickstart", ["objective.shaping=[{kind: repetition}]"])
    load_recipe("quickstart", ["objective.shaping=[{kind: repetition, form: sparse}]"])
    load_recipe("quickstart", ["objective=reinforce_pp", "objective.shaping=[{kind: repetition}]"])


def test_shaping_by_the_verdict_needs_a_source_of_verdicts() -> None:
    override = ["objective.shaping=[{kind: cosine}]", "sources=[{kind: 'tests.trainer.test_combinations:Source'}]"]
    with pytest.raises(ConfigError, match="no source says so"):
        load_recipe("quickstart", override)


def test_a_typo_in_the_options_of_a_shaping_is_answered() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'objective\.shaping\.0\.exeed'") as caught:
        load_recipe("quickstart", ["objective.shaping=[{kind: cosine, exeed: 1.0}]"])
    assert "did you mean 'exceed'" in str(caught.value)


class Source:
    """A source that gives no verdicts."""

    from verifiers.options import Options
