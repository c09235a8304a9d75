"""Bradley-Terry: the loss, its gradient whatever the packing, the exported model, the frozen source."""

import json
import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from data.example import Example, Message
from data.labelled import Pair
from data.template import TemplateOptions
from prm.bradley_terry import BradleyTerry, BradleyTerrySource, bradley_terry_loss, pair_metrics
from prm.cotrained import CoTrained
from prm.reward_model import CARD, FitContext, build, flat, open_reward_model, scores_of, write_card
from rollout.options import OptimConfig, WriterConfig
from tests.helpers import make_config, model_setup, sharpen, source_context, tokenizer, trajectory
from verifiers.errors import ModelError
from verifiers.runner import Runner

PAIRS = [
    Pair("a", (Message("user", "3+4="),), "7\n#7", "8\n#8", 0.5),
    Pair("b", (Message("user", "2*2+1="),), "4+1\n5\n#5", "4+1\n0\n#0"),
    Pair("c", (Message("user", "9="),), "#9", "#1 or so", 2.0),
]


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def kind(max_tokens=64, **options):
    context = FitContext(tokenizer(), TemplateOptions(kind="plain"), max_tokens, 0, WriterConfig())
    return BradleyTerry(BradleyTerry.Options(**options), context)


def made(lr=1e-2, max_tokens_per_microbatch=4096, **options):
    setup = model_setup(make_config({"train.max_tokens_per_microbatch": max_tokens_per_microbatch}))
    reward_model = kind(**options)
    model = build(reward_model, setup, OptimConfig(lr=lr, grad_clip=1e9))
    sharpen(model.trunk)
    return model, reward_model


# ---- the loss ----------------------------------------------------


@pytest.mark.golden
def test_equal_scores_cost_ln_2_and_the_known_pair_its_number():
    none = column(0.0)
    assert float(bradley_terry_loss(column(1.5), column(1.5), none)) == pytest.approx(math.log(2))
    assert float(bradley_terry_loss(column(2.0), column(0.0), none)) == pytest.approx(0.126928, abs=1e-6)
    assert float(bradley_terry_loss(column(0.0), column(2.0), none)) == pytest.approx(2.126928, abs=1e-6)


def test_a_common_shift_changes_nothing_until_scores_are_regularised():
    chosen, rejected, margin = column(1.0, -0.3), column(0.2, 0.4), column(0.0, 0.0)
    plain = bradley_terry_loss(chosen, rejected, margin)
    assert float(bradley_terry_loss(chosen + 5, rejected + 5, margin)) == pytest.approx(float(plain))
    for options in ({"score_l2": 0.1}, {"centre": 0.1}):
        held = bradley_terry_loss(chosen, rejected, margin, **options)
        assert float(bradley_terry_loss(chosen + 5, rejected + 5, margin, **options)) > float(held) > float(plain)


def test_a_margin_is_a_distance_that_is_asked_for():
    assert float(bradley_terry_loss(column(2.0), column(0.0), column(2.0))) == pytest.approx(math.log(2))


def test_the_regularisers_are_those_of_their_sources():
    w, l = column(1.0, 2.0), column(-1.0, 0.5)
    base = bradley_terry_loss(w, l, column(0.0, 0.0))
    open_assistant = 0.001 * 0.5 * (w**2 + l**2).mean()
    assert float(bradley_terry_loss(w, l, column(0.0, 0.0), score_l2=0.001) - base) == pytest.approx(
        float(open_assistant)
    )
    trl = 0.01 * ((w + l) ** 2).mean()
    assert float(bradley_terry_loss(w, l, column(0.0, 0.0), centre=0.01) - base) == pytest.approx(float(trl))


def gradient_of_a_step(max_tokens_per_microbatch, **options):
    model, reward_model = made(max_tokens_per_microbatch=max_tokens_per_microbatch, **options)
    sequences = [reward_model.encode(pair) for pair in PAIRS]
    seen = {}
    model.optimizer.step = lambda: seen.update({i: p.grad.clone() for i, p in enumerate(model.parameters())})
    batches = len(model.pack(flat(sequences)))
    found = model.step(flat(sequences), reward_model.batch_loss(model, PAIRS, sequences), "test")
    return seen, found, batches


@pytest.mark.invariance
@pytest.mark.parametrize("options", [{}, {"margin": 1.0, "score_l2": 0.01, "centre": 0.01}])
def test_the_gradient_does_not_depend_on_which_responses_share_a_micro_batch(options):
    whole, found, one = gradient_of_a_step(4096, **options)
    split, apart, many = gradient_of_a_step(12, **options)
    assert (one, many) == (1, 6)  # every response alone: no pair is together
    for name in ("loss", "accuracy", "difference", "grad_norm"):
        assert apart[name] == pytest.approx(found[name], rel=1e-4)
    for i, gradient in whole.items():
        torch.testing.assert_close(split[i], gradient, rtol=1e-3, atol=1e-6)


def test_the_gradient_is_that_of_the_loss_taken_directly():
    model, reward_model = made(margin=1.0, score_l2=0.01)
    sequences = [reward_model.encode(pair) for pair in PAIRS]
    (batch,) = model.pack(flat(sequences))
    score_S = model.forward(batch)
    order = torch.tensor(batch.sequence_index).argsort()
    score_N = score_S[order]
    margin = torch.tensor([0.5, 0.0, 2.0])
    direct = bradley_terry_loss(score_N[0::2], score_N[1::2], margin, score_l2=0.01)
    expected = torch.autograd.grad(direct, model.parameters())
    seen, found, _ = gradient_of_a_step(4096, margin=1.0, score_l2=0.01)
    assert found["loss"] == pytest.approx(float(direct.detach()), rel=1e-5)
    for i, gradient in enumerate(expected):
        torch.testing.assert_close(seen[i], gradient, rtol=1e-3, atol=1e-6)


def test_a_step_raises_the_difference_on_the_same_pairs():
    model, reward_model = made(lr=1e-3)
    sequences = [reward_model.encode(pair) for pair in PAIRS]
    before = reward_model.evaluate(model, PAIRS, sequences).metrics
    model.step(flat(sequences), reward_model.batch_loss(model, PAIRS, sequences), "test")
    assert reward_model.evaluate(model, PAIRS, sequences).metrics["difference"] > before["difference"]


def test_ties_are_not_accurate():
    found = pair_metrics([1.0, 2.0, 0.0], [0.0, 2.0, 1.0])
    assert (found["accuracy"], found["tied_share"]) == (1 / 3, 1 / 3)


# ---- the exported model ------------------------------------------


def export(folder, model, reward_model):
    folder.mkdir(parents=True)
    model.export_hf(folder)
    tokenizer().save_pretrained(folder)
    write_card(folder, "bt_rm", reward_model)
    return folder


def test_plain_transformers_gives_the_same_scores_also_with_right_padding(tmp_path):
    model, reward_model = made()
    sequences = flat([reward_model.encode(pair) for pair in PAIRS])
    ours = scores_of(model, sequences)
    folder = export(tmp_path / "hf", model, reward_model)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert loaded.config.num_labels == 1
    assert loaded.config.architectures == ["LlamaForSequenceClassification"]
    ids = [one.prompt_ids + one.response_ids for one in sequences]
    longest, pad = max(map(len, ids)), loaded.config.pad_token_id
    padded = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    with torch.no_grad():
        theirs = loaded(padded, attention_mask=mask).logits[:, 0].tolist()
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_scoring_encodes_by_the_function_that_training_used(tmp_path):
    model, reward_model = made()
    folder = export(tmp_path / "hf", model, reward_model)
    _, opened = open_reward_model(str(folder), "bt_rm", model_setup(make_config()), key="k")
    pair = PAIRS[1]
    trained_on = reward_model.encode(pair)[0]
    assert opened.sequence(pair.id, pair.prompt, pair.chosen) == trained_on
    text = tokenizer().decode(trained_on.prompt_ids + trained_on.response_ids)
    assert text.endswith(tokenizer().eos_token)


def source(folder, **options):
    options = BradleyTerrySource.Options(path=str(folder), **options)
    return BradleyTerrySource(options, source_context(Runner("exact", {})))


def asked(*texts):
    examples = [Example("q", (Message("user", "3+4="),), "7") for _ in texts]
    return [trajectory([5], [6], text=text) for text in texts], examples


def test_the_source_gives_the_models_scores_and_leaves_out_what_is_too_long(tmp_path):
    model, reward_model = made(max_tokens=16)
    folder = export(tmp_path / "hf", model, reward_model)
    trajectories, examples = asked("7\n#7", "#8", "1" * 40)
    signal = source(folder).score(trajectories, examples)
    expected = scores_of(model, [reward_model.sequence("q", examples[0].prompt, t) for t in ("7\n#7", "#8")])
    assert signal.outcome_N[:2].tolist() == pytest.approx(expected, abs=1e-5)
    assert math.isnan(signal.outcome_N[2])
    assert signal.labels["score"][2] is None
    assert signal.metrics["too_long_share"] == pytest.approx(1 / 3)
    bounded = source(folder, output="sigmoid").score(trajectories, examples)
    torch.testing.assert_close(bounded.outcome_N[:2], signal.outcome_N[:2].sigmoid())


def test_a_path_without_a_reward_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="no reward model at"):
        source(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=CARD):
        source(tmp_path / "empty")


def test_a_folder_without_weights_or_with_those_of_another_model_is_named(tmp_path):
    model, reward_model = made()
    folder = export(tmp_path / "hf", model, reward_model)
    (folder / "model.safetensors").rename(tmp_path / "kept")
    with pytest.raises(ModelError, match="holds no weights"):
        source(folder)
    causal = CoTrained(model_setup(make_config()), "lm", None)
    causal.export_hf(folder)
    with pytest.raises(ModelError, match="not hold the weights of a reward model"):
        source(folder)


def test_a_reward_model_of_another_kind_is_named(tmp_path):
    model, reward_model = made()
    folder = export(tmp_path / "hf", model, reward_model)
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"kind": "conciseness", "options": {}}))
    with pytest.raises(ModelError, match="kind 'conciseness', not 'bt_rm'"):
        source(folder)
