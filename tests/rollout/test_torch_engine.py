"""The torch engine against fresh forwards of the same weights in transformers."""

from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, MistralConfig

from rollout.decoder import LlamaDecoder
from rollout.engine import Engine, Prompt, SamplingParams, decode
from rollout.torch_engine import _Batch
from rollout.trajectory import Finish
from tests.helpers import (
    CPU,
    EOS,
    forward_logits,
    make_engine,
    prompts,
    reference_log_probs,
    sharpen,
    tiny_model,
    tokenizer,
)
from verifiers.errors import ModelError, RunError

PLAIN = SamplingParams(24)
LENGTHS = [5, 1, 12, 12, 3]
EAGER_ENDS = [EOS, *range(5, 20)]  # many end tokens: samples finish at very different lengths, so rows come and go


def gaps(model, trajectories, temperature=1.0, top_p=1.0):
    """|engine - fresh forward| of every token: (as sampled, untransformed)."""
    sampled, untransformed = [], []
    for t in trajectories:
        logits = forward_logits(model, t.prompt_ids, t.response_ids)
        target = torch.tensor(t.response_ids)[:, None]
        expected = reference_log_probs(logits, temperature, top_p).gather(1, target)[:, 0]
        plain = torch.log_softmax(logits.double(), -1).gather(1, target)[:, 0]
        sampled.append((torch.tensor(t.logp_sampled, dtype=torch.float64) - expected).abs())
        untransformed.append((torch.tensor(t.logp_model, dtype=torch.float64) - plain).abs())
    return torch.cat(sampled), torch.cat(untransformed)


def essence(trajectories):
    return [(t.example_id, t.sample, t.response_ids, t.finish, t.text) for t in trajectories]


# ---- log-probs ------------------------------------------------------------------------------------------------------


@pytest.mark.invariance
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.8, 0.9), (1.3, 0.7)])
def test_sampled_log_probs_equal_a_fresh_forward(kind, tied, temperature, top_p):
    model = tiny_model(kind, tied)
    sampling = SamplingParams(24, temperature=temperature, top_p=top_p)
    trajectories = make_engine(model).generate(prompts(LENGTHS), 3, sampling, seed=11)
    as_sampled, untransformed = gaps(model, trajectories, temperature, top_p)
    assert as_sampled.max() < 1e-4
    assert untransformed.max() < 1e-4


@pytest.mark.invariance
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_log_probs_stay_right_while_rows_are_refilled_and_the_window_slides(kind, monkeypatch):
    slides = []
    original = _Batch._slide_window

    def slide(batch, steps):
        column = batch.column
        original(batch, steps)
        slides.append(column - batch.column)

    monkeypatch.setattr(_Batch, "_slide_window", slide)
    model = tiny_model(kind)
    engine = make_engine(model, max_rows=4, eos_ids=[EOS, 5, 6, 7])
    lengths = [1 + (7 * i) % 17 for i in range(20)]
    trajectories = engine.generate(prompts(lengths), 3, SamplingParams(48, temperature=0.9, top_p=0.95), seed=12)
    assert sum(moved > 0 for moved in slides) >= 3
    assert len(trajectories) == 60
    as_sampled, untransformed = gaps(model, trajectories, 0.9, 0.95)
    assert as_sampled.max() < 1e-4
    assert untransformed.max() < 1e-4


@pytest.mark.invariance
def test_the_two_level_cdf_of_a_large_vocabulary_gives_right_log_probs():
    model = tiny_model(vocabulary=4096)
    trajectories = make_engine(model).generate(prompts(LENGTHS), 2, SamplingParams(16, top_p=0.9), seed=13)
    as_sampled, untransformed = gaps(model, trajectories, 1.0, 0.9)
    assert as_sampled.max() < 1e-4
    assert untransformed.max() < 1e-4


def test_bfloat16_is_close_to_the_float32_forward():
    model = tiny_model()
    sharpen(model, seed=2, scale=0.02)
    trajectories = make_engine(model, dtype=torch.bfloat16).generate(prompts(LENGTHS), 4, PLAIN, seed=14)
    as_sampled, _ = gaps(model, trajectories)
    assert 0 < as_sampled.mean() < 0.05


def test_greedy_takes_the_mode_of_a_fresh_forward():
    model = tiny_model()
    trajectories = make_engine(model).generate(prompts(LENGTHS), 1, replace(PLAIN, greedy=True), seed=0)
    for t in trajectories:
        logits = forward_logits(model, t.prompt_ids, t.response_ids)
        assert logits.argmax(-1).tolist() == t.response_ids
        assert t.logp_sampled == [0.0] * len(t.response_ids)
    _, untransformed = gaps(model, trajectories)
    assert untransformed.max() < 1e-4


# ---- determinism -------------------------------------------------


@pytest.mark.invariance
@pytest.mark.parametrize("max_rows", [1, 3, 5])
def test_trajectories_do_not_depend_on_how_many_rows_fly_together(max_rows):
    model = tiny_model()
    wide = make_engine(model, eos_ids=EAGER_ENDS).generate(prompts(LENGTHS), 4, PLAIN, seed=15)
    narrow = make_engine(model, eos_ids=EAGER_ENDS, max_rows=max_rows).generate(prompts(LENGTHS), 4, PLAIN, seed=15)
    assert essence(narrow) == essence(wide)
    for a, b in zip(narrow, wide, strict=True):
        torch.testing.assert_close(torch.tensor(a.logp_sampled), torch.tensor(b.logp_sampled), atol=1e-4, rtol=0)


@pytest.mark.invariance
def test_trajectories_do_not_depend_on_the_other_prompts():
    engine = make_engine(tiny_model())
    everyone = engine.generate(prompts(LENGTHS), 3, PLAIN, seed=16)
    alone = engine.generate([prompts(LENGTHS)[2]], 3, PLAIN, seed=16)
    backwards = engine.generate(prompts(LENGTHS)[::-1], 3, PLAIN, seed=16)
    assert essence(alone) == essence(everyone[6:9])
    assert sorted(essence(backwards)) == sorted(essence(everyone))


def test_copies_of_an_example_in_a_batch_give_different_samples():
    engine = make_engine(tiny_model())
    one = prompts([6])[0]
    again = Prompt(one.example_id, 1, one.ids)
    found = engine.generate([one, again], 3, PLAIN, seed=16)
    assert essence(found[:3]) == essence(engine.generate([one], 3, PLAIN, seed=16))
    assert {tuple(t.response_ids) for t in found[:3]}.isdisjoint(tuple(t.response_ids) for t in found[3:])


def test_more_samples_extend_a_prompt_and_change_none():
    engine = make_engine(tiny_model())
    two = engine.generate(prompts([4, 6]), 2, PLAIN, seed=17)
    five = engine.generate(prompts([4, 6]), 5, PLAIN, seed=17)
    assert essence(five[0:2] + five[5:7]) == essence(two)


def test_the_same_seed_repeats_exactly_and_another_differs():
    engine = make_engine(tiny_model())
    first, second, other = (engine.generate(prompts(LENGTHS), 2, PLAIN, seed=s) for s in (1, 1, 2))
    assert first == second
    assert [t.response_ids for t in first] != [t.response_ids for t in other]


def test_samples_of_a_prompt_differ_from_one_another():
    trajectories = make_engine(tiny_model()).generate(prompts([6]), 8, PLAIN, seed=18)
    assert len({tuple(t.response_ids) for t in trajectories}) == 8


def test_global_random_state_is_neither_read_nor_moved():
    engine = make_engine(tiny_model())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = engine.generate(prompts([6]), 2, PLAIN, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert engine.generate(prompts([6]), 2, PLAIN, seed=1) == first


def test_results_are_ordered_by_prompt_then_sample():
    trajectories = make_engine(tiny_model(), max_rows=2, eos_ids=EAGER_ENDS).generate(
        prompts(LENGTHS), 3, PLAIN, seed=19
    )
    assert [(t.group, t.sample) for t in trajectories] == [(p, s) for p in range(5) for s in range(3)]
    assert [t.example_id for t in trajectories[::3]] == [f"example-{p}" for p in range(5)]
    for t, p in zip(trajectories[::3], prompts(LENGTHS), strict=True):
        assert t.prompt_ids == p.ids


# ---- ends of responses -------------------------------------------


def test_a_response_ends_with_its_first_end_token_which_stays_in_the_ids_but_not_in_the_text():
    engine = make_engine(tiny_model(), eos_ids=EAGER_ENDS)
    trajectories = engine.generate(prompts(LENGTHS), 6, PLAIN, seed=20)
    stopped = [t for t in trajectories if t.finish == Finish.STOP]
    assert len(stopped) > 0
    for t in stopped:
        assert t.response_ids[-1] in EAGER_ENDS
        assert not set(t.response_ids[:-1]) & set(EAGER_ENDS)
        assert t.text == decode(tokenizer(), t.response_ids[:-1])
        assert len(t.response_ids) == len(t.logp_sampled) == len(t.logp_model)


def test_a_response_that_meets_no_end_is_cut_at_the_limit():
    engine = make_engine(tiny_model(), eos_ids=[])
    for limit in (1, 7, 8, 9, 17):
        trajectories = engine.generate(prompts([3, 9]), 2, SamplingParams(limit), seed=21)
        assert [t.num_response_tokens for t in trajectories] == [limit] * 4
        assert {t.finish for t in trajectories} == {Finish.LENGTH}


def test_a_row_that_ends_on_the_first_token_leaves_the_others_alone():
    model = tiny_model()
    free = make_engine(model, eos_ids=[]).generate(prompts([4, 6]), 3, PLAIN, seed=22)
    first = free[0].response_ids[0]
    ended = make_engine(model, eos_ids=[first]).generate(prompts([4, 6]), 3, PLAIN, seed=22)
    assert ended[0].response_ids == [first]
    assert ended[0].text == ""
    for before, after in zip(free, ended, strict=True):
        assert after.response_ids == before.response_ids[: after.num_response_tokens]


def test_an_end_token_at_the_limit_counts_as_stopped():
    model = tiny_model()
    free = make_engine(model, eos_ids=[]).generate(prompts([4]), 1, SamplingParams(6), seed=23)[0]
    last = free.response_ids[-1]
    assert last not in free.response_ids[:-1]
    ended = make_engine(model, eos_ids=[last]).generate(prompts([4]), 1, SamplingParams(6), seed=23)[0]
    assert ended.response_ids == free.response_ids
    assert ended.finish == Finish.STOP


def test_limit_one_gives_one_token_and_right_log_probs():
    model = tiny_model()
    trajectories = make_engine(model, max_rows=3).generate(prompts(LENGTHS), 4, SamplingParams(1), seed=24)
    assert [t.num_response_tokens for t in trajectories] == [1] * 20
    as_sampled, _ = gaps(model, trajectories)
    assert as_sampled.max() < 1e-4


def test_a_stop_string_ends_the_response_at_the_token_that_completes_it_and_is_kept():
    model = tiny_model()
    free = make_engine(model, eos_ids=[]).generate(prompts(LENGTHS), 3, PLAIN, seed=25)
    stop = free[0].text[5:8]  # three characters, so three tokens of the character tokenizer
    stopped = make_engine(model, eos_ids=[]).generate(prompts(LENGTHS), 3, replace(PLAIN, stop=(stop, "\x00")), seed=25)
    assert stopped[0].text.endswith(stop)
    assert stopped[0].finish == Finish.STOP
    for before, after in zip(free, stopped, strict=True):
        end = before.text.find(stop)
        length = len(before.text) if end < 0 else end + len(stop)
        assert after.text == before.text[:length]
        assert after.response_ids == before.response_ids[: after.num_response_tokens]
        assert after.finish == (Finish.LENGTH if end < 0 else Finish.STOP)


def test_the_first_of_several_stop_strings_wins():
    model = tiny_model()
    free = make_engine(model, eos_ids=[]).generate(prompts([7]), 1, PLAIN, seed=26)[0]
    early, late = free.text[2:4], free.text[10:13]
    t = make_engine(model, eos_ids=[]).generate(prompts([7]), 1, replace(PLAIN, stop=(late, early)), seed=26)[0]
    assert t.text == free.text[: free.text.find(early) + 2]


def test_a_stop_string_in_the_prompt_ends_nothing():
    model = tiny_model()
    prompt = prompts([9])[0]
    inside = tokenizer().decode(prompt.ids)[2:6]
    free = make_engine(model, eos_ids=[]).generate([prompt], 2, PLAIN, seed=27)
    assert make_engine(model, eos_ids=[]).generate([prompt], 2, replace(PLAIN, stop=(inside,)), seed=27) == free


def test_the_longest_prompts_and_responses_the_engine_was_built_for_go_through_with_refills():
    """Finished rows idle up to the next look at the tokens; their positions run past the longest sequence."""
    engine = make_engine(tiny_model(), max_prompt_tokens=8, max_response_tokens=20, max_rows=3, eos_ids=EAGER_ENDS)
    trajectories = engine.generate(prompts([8] * 8), 3, SamplingParams(20), seed=28)
    lengths = {t.num_response_tokens for t in trajectories}
    assert len(trajectories) == 24
    assert max(lengths) <= 20
    assert len(lengths) > 3


# ---- weights -----------------------------------------------------


def test_new_weights_take_effect_and_their_version_is_stamped():
    model = tiny_model()
    engine = make_engine(model, version=3)
    before = engine.generate(prompts([6]), 2, PLAIN, seed=29)
    sharpen(model, seed=9)
    engine.load_weights(model.state_dict(), version=4)
    after = engine.generate(prompts([6]), 2, PLAIN, seed=29)
    assert ({t.weights_version for t in before}, {t.weights_version for t in after}) == ({3}, {4})
    assert [t.response_ids for t in before] != [t.response_ids for t in after]
    as_sampled, _ = gaps(model, after)
    assert as_sampled.max() < 1e-4


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_engine_keeps_its_weights_when_the_model_is_trained_on(kind, tied):
    """Weights are handed over as views of the live model: the engine must not see the next optimizer step."""
    model = tiny_model(kind, tied)
    engine = make_engine(model)
    before = engine.generate(prompts([6]), 2, PLAIN, seed=30)
    sharpen(model, seed=9)
    assert engine.generate(prompts([6]), 2, PLAIN, seed=30) == before


def test_after_sleep_the_engine_needs_weights_again():
    model = tiny_model()
    engine = make_engine(model)
    before = engine.generate(prompts([6]), 2, PLAIN, seed=31)
    engine.sleep()
    with pytest.raises(RunError, match="load_weights"):
        engine.generate(prompts([6]), 2, PLAIN, seed=31)
    engine.load_weights(model.state_dict(), 0)
    assert engine.generate(prompts([6]), 2, PLAIN, seed=31) == before


# ---- refusals ----------------------------------------------------


@pytest.mark.parametrize("length", [0, 41])
def test_a_prompt_the_engine_was_not_built_for_is_refused_by_name(length):
    prompt = Prompt("problem-7", 0, [5] * length)
    with pytest.raises(ModelError) as caught:
        make_engine(tiny_model()).generate([*prompts([3]), prompt], 1, PLAIN, seed=0)
    assert "problem-7" in str(caught.value)
    assert "40" in str(caught.value)
    assert "data.max_prompt_tokens" in str(caught.value)


def test_a_limit_the_engine_was_not_built_for_is_refused():
    with pytest.raises(RunError, match=r"65.*64"):
        make_engine(tiny_model()).generate(prompts([3]), 1, SamplingParams(65), seed=0)


def test_an_unknown_architecture_is_refused_by_name():
    with pytest.raises(ModelError, match="gpt2"):
        LlamaDecoder(GPT2Config(), torch.float32, CPU, 16)


def test_sliding_window_attention_is_refused():
    with pytest.raises(ModelError, match="sliding-window"):
        LlamaDecoder(MistralConfig(sliding_window=128), torch.float32, CPU, 16)


def test_no_prompts_give_no_trajectories():
    assert make_engine(tiny_model()).generate([], 4, PLAIN, seed=0) == []


def test_the_torch_engine_is_an_engine():
    assert isinstance(make_engine(tiny_model()), Engine)
