"""BRME: what stage 2 minimises and does to sigma, the exported heads, and the objective in the loop."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from data.labelled import LabelledResponse, Pair
from data.template import TemplateOptions
from prm.brme import Brme, BrmeSource, gaussians, heads_of, negative_log_likelihood, sampled_error
from prm.ensemble import EnsembleOptions, combine
from prm.reward_model import CARD, REWARD_MODELS, FitContext, build, flat, scores_of, write_card
from prm.signal import SOURCES
from rollout.options import OptimConfig, WriterConfig
from tests.helpers import make_config, model_setup, sharpen, source_context, tokenizer
from tests.prm.test_bradley_terry import PAIRS, asked
from tests.prm.test_bradley_terry import export as export_kind
from tests.prm.test_bradley_terry import kind as bradley_terry
from tests.prm.test_bradley_terry import made as bradley_terry_made
from tests.prm.test_verify_rm import scorer as verify_scorer
from verifiers.errors import ConfigError
from verifiers.options import parse_options
from verifiers.runner import Runner

LABELLED = [LabelledResponse(p.id, p.prompt, p.chosen, 1.0, "7") for p in PAIRS]


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Bradley-Terry model of 64 tokens."""
    return export_kind(tmp_path_factory.mktemp("stage1") / "hf", *bradley_terry_made())


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verifier")
    verify_scorer().export_hf(folder)
    tokenizer().save_pretrained(folder)
    kind = REWARD_MODELS.get("verify_rm")
    write_card(folder, "verify_rm", kind(kind.Options(answer_chars=30), fit_context(200)))
    return folder


def fit_context(max_tokens: int = 64, template: str = "plain") -> FitContext:
    return FitContext(tokenizer(), TemplateOptions.model_validate({"kind": template}), max_tokens, 0, WriterConfig())


def stage2(folder: Path, max_tokens: int = 64, **options: Any) -> Brme:
    return Brme(
        parse_options(Brme.Options, {"stage1": str(folder), **options}, "reward_model"), fit_context(max_tokens)
    )


def heads(kind: Brme, folder: Path, lr: float = 1e-2, max_tokens_per_microbatch: int = 4096) -> Any:
    """The model of stage 2: stage 1's trunk, heads at random."""
    config = make_config({"train.max_tokens_per_microbatch": max_tokens_per_microbatch,
                          "model": {"path": str(folder)}})  # fmt: skip
    return build(kind, model_setup(config), OptimConfig(lr=lr, grad_clip=1e9))


def one_step(kind: Brme, model: Any, examples: list[Any]) -> dict[str, float]:
    sequences = [kind.encode(one) for one in examples]
    return model.step(flat(sequences), kind.batch_loss(model, examples, sequences), "stage 2")


# ---- stage 2 -------------------------------------------------------


def test_every_sigma_is_above_0_whatever_the_numbers() -> None:
    mean, sigma = gaussians(torch.tensor([[1.0, -2.0, -1e4, 1e4]]))
    assert mean.tolist() == [[1.0, -2.0]]
    assert 0 < float(sigma[0, 0]) < 1e-3
    assert float(sigma[0, 1]) == pytest.approx(1e4)


def test_the_sampled_error_is_in_expectation_the_squared_error_and_sigma_squared() -> None:
    eps = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, sigma, reward = torch.tensor([[2.0]]), torch.tensor([[0.7]]), torch.tensor([0.5])
    assert float(sampled_error(mean, sigma, eps, reward).mean()) == pytest.approx(1.5**2 + 0.7**2, rel=0.01)


def minimised(loss: Any) -> tuple[float, float]:
    """(mu, sigma) of one head that is to fit the rewards -1 and 1, which it cannot tell apart."""
    number = torch.zeros(1, 2, requires_grad=True)
    optimizer, generator = torch.optim.Adam([number], lr=0.05), torch.Generator().manual_seed(0)
    reward = torch.tensor([-1.0, 1.0]).repeat(64)
    for _ in range(300):
        mean, sigma = (t.expand(128, 1) for t in gaussians(number))
        optimizer.zero_grad()
        loss(mean, sigma, torch.randn(128, 1, generator=generator), reward).mean().backward()
        optimizer.step()
    mean, sigma = gaussians(number.detach())
    return float(mean), float(sigma)


def test_the_error_of_samples_drives_sigma_to_0_and_the_likelihood_to_the_error_that_is_left() -> None:
    mean, sigma = minimised(sampled_error)
    assert abs(mean) < 0.1
    assert sigma < 0.1
    mean, sigma = minimised(lambda mean, sigma, _, reward: negative_log_likelihood(mean, sigma, reward))
    assert abs(mean) < 0.1
    assert sigma == pytest.approx(1.0, abs=0.05)


def test_the_loss_is_the_mean_over_responses_and_heads_of_the_sampled_error_to_stage_1(stage1: Path) -> None:
    kind = stage2(stage1, heads=3)
    model = heads(kind, stage1)
    read = flat([kind.encode(pair) for pair in PAIRS])
    mean, sigma = heads_of(model, read)
    reward = torch.tensor(scores_of(bradley_terry_made()[0], read))
    torch.testing.assert_close(kind.stage1_rewards(model, read), reward, rtol=1e-4, atol=1e-5)
    seen: dict[str, Any] = {}

    def remember(*args: Any) -> Any:
        seen["eps"] = args[2]
        return sampled_error(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prm.brme.sampled_error", remember)
        found = one_step(kind, model, PAIRS)
    order = torch.tensor(model.pack(read)[0].sequence_index)
    expected = sampled_error(mean[order], sigma[order], seen["eps"], reward[order]).mean()
    assert found["loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.invariance
@pytest.mark.parametrize("loss", ["mse", "nll"])
def test_neither_micro_batches_nor_what_was_drawn_before_change_the_weights(stage1: Path, loss: str) -> None:
    weights = []
    for tokens in (12, 4096):
        kind = stage2(stage1, loss=loss)
        model = heads(kind, stage1, lr=1e-3, max_tokens_per_microbatch=tokens)
        torch.randn(tokens)  # the process's own generator is not asked
        for _ in range(2):
            one_step(kind, model, PAIRS)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def test_another_step_draws_another_eps(stage1: Path) -> None:
    kind = stage2(stage1)
    model = heads(kind, stage1, lr=0.0)
    assert one_step(kind, model, PAIRS)["loss"] != one_step(kind, model, PAIRS)["loss"]


def test_the_trunk_is_stage_1s_and_learns_with_the_heads_towards_its_reward(stage1: Path) -> None:
    kind, base = stage2(stage1, loss="mse"), bradley_terry_made()[0].weights()
    model = heads(kind, stage1)
    assert all(torch.equal(t, base[n]) for n, t in model.weights().items() if n.startswith("model."))
    assert model.weights()["score.weight"].shape == (10, 32)
    sequences = [kind.encode(pair) for pair in PAIRS]
    before = kind.evaluate(model, PAIRS, sequences).metrics
    for _ in range(40):
        one_step(kind, model, PAIRS)
    after = kind.evaluate(model, PAIRS, sequences)
    assert after.metrics["error"] < before["error"] / 2
    assert after.metrics["sigma_mean"] < before["sigma_mean"]
    assert [row["id"] for row in after.rows] == ["a", "a", "b", "b", "c", "c"]
    changed = model.weights()["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(changed, base["model.layers.0.mlp.up_proj.weight"])


def test_a_verifier_of_references_can_be_stage_1(verifier: Path) -> None:
    kind = stage2(verifier, max_tokens=200)
    assert kind.takes is LabelledResponse
    text = tokenizer().decode(kind.encode(LABELLED[0])[0].prompt_ids)
    assert text.startswith("<question>\n3+4=\n</question>\n<reference_answer>\n7\n")
    model = heads(kind, verifier, lr=1e-3)
    first = one_step(kind, model, LABELLED)["loss"]
    assert math.isfinite(first)
    found = kind.evaluate(model, LABELLED, [kind.encode(one) for one in LABELLED])
    assert "auc" not in found.metrics  # all of them are right
    assert found.metrics["within_sigma"] >= 0


def test_pairs_are_what_a_stage_1_of_pairs_takes(stage1: Path) -> None:
    assert stage2(stage1).takes is Pair


@pytest.mark.parametrize(("changed", "key"), [({"template": {"kind": "chat"}}, "template"), ({"max_tokens": 99},
                         "data.max_tokens"), ({"kind": "conciseness"}, "no single number")])  # fmt: skip
def test_a_recipe_that_would_read_otherwise_than_stage_1_is_refused(
    stage1: Path, tmp_path: Path, changed: dict[str, Any], key: str
) -> None:
    card = json.loads((stage1 / CARD).read_text())
    for file in stage1.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / CARD).unlink()
    (tmp_path / CARD).write_text(json.dumps(card | changed))
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        stage2(tmp_path)


def test_another_tokenizer_than_stage_1s_is_refused(stage1: Path) -> None:
    context = fit_context()
    context.tokenizer.add_tokens(["seven"])
    with pytest.raises(ConfigError, match="tokenizer"):
        Brme(Brme.Options(stage1=str(stage1)), context)


# ---- the exported model --------------------------------------------


@pytest.fixture(scope="module")
def trained(stage1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = stage2(stage1, heads=3)
    model = heads(kind, stage1)
    sharpen(model.head, scale=0.5)
    folder = tmp_path_factory.mktemp("trained") / "hf"
    folder.mkdir()
    model.export_hf(folder)
    tokenizer().save_pretrained(folder)
    write_card(folder, "brme", kind)
    return folder


def test_transformers_gives_the_same_numbers_one_label_each(trained: Path) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(trained)
    assert loaded.config.num_labels == 6
    one = bradley_terry().encode(PAIRS[0])[0]
    with torch.no_grad():
        mean, sigma = gaussians(loaded(torch.tensor([one.prompt_ids + one.response_ids])).logits)
    ours = heads_of(source(trained, alpha=1.0).model, [one])
    torch.testing.assert_close((mean, sigma), ours, rtol=1e-4, atol=1e-5)


def test_a_trained_folder_needs_stage_1_no_more(trained: Path, tmp_path: Path) -> None:
    card = json.loads((trained / CARD).read_text())
    assert card["options"]["reader"] == {"kind": "bt_rm", "margin": 0.0, "score_l2": 0.0, "centre": 0.0}
    for file in trained.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / CARD).unlink()
    card["options"]["stage1"] = "/nowhere"
    (tmp_path / CARD).write_text(json.dumps(card))
    trajectories, examples = asked("#7")
    moved, kept = (source(f, alpha=0.5).score(trajectories, examples).outcome_N for f in (tmp_path, trained))
    assert torch.equal(moved, kept)


def test_a_bench_gets_the_most_certain_heads_number_and_none_for_what_does_not_fit(trained: Path) -> None:
    made = source(trained, alpha=1.0)
    rows = [LabelledResponse("q", PAIRS[0].prompt, text, 1.0) for text in ("7\n#7", "1" * 80)]
    trajectories, examples = asked("7\n#7")
    found = made.kind.score(made.model, rows)
    assert found == [pytest.approx(float(made.score(trajectories, examples).outcome_N[0])), None]


# ---- in the loop ---------------------------------------------------

TEXTS = ("7\n#7", "#8", "5+2\n#7", "#1", "3\n4\n#7", "#77777777")


def source(folder: Path, **options: Any) -> BrmeSource:
    cls = SOURCES.get("brme")
    made = parse_options(cls.Options, {"path": str(folder), **options}, "sources.0")
    return cls(made, source_context(Runner("exact", {})))  # type: ignore[return-value]


def columns(signal: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.tensor(signal.labels[name]) for name in ("head_means", "head_sigmas"))  # type: ignore


def test_alpha_1_pays_the_most_certain_head_of_each_response(trained: Path) -> None:
    signal = source(trained, alpha=1.0).score(*asked(*TEXTS))
    mean, sigma = columns(signal)
    assert len(set(sigma.argmin(1).tolist())) > 1  # not one head for all
    torch.testing.assert_close(signal.outcome_N, mean[torch.arange(len(TEXTS)), sigma.argmin(1)])


def test_alpha_0_pays_the_one_head_that_is_lowest_over_the_batch(trained: Path) -> None:
    signal = source(trained, alpha=0.0).score(*asked(*TEXTS))
    mean, _ = columns(signal)
    worst = int(mean.mean(0).argmin())
    torch.testing.assert_close(signal.outcome_N, mean[:, worst])
    assert signal.metrics["worst_head"] == worst
    per_sample = combine(mean.T, EnsembleOptions(objective="wco"))
    assert float(signal.outcome_N.mean()) >= float(per_sample.mean())
    assert not torch.equal(signal.outcome_N, per_sample)


def test_between_them_alpha_mixes(trained: Path) -> None:
    one, none, mixed = (source(trained, alpha=a).score(*asked(*TEXTS)).outcome_N for a in (1.0, 0.0, 0.4))
    torch.testing.assert_close(mixed, 0.4 * one + 0.6 * none)


def test_the_worst_head_is_of_the_batch_that_was_asked_about(trained: Path) -> None:
    made = source(trained, alpha=0.0)
    trajectories, examples = asked(*TEXTS)
    whole = made.score(trajectories, examples)
    alone = [made.score([t], [e]).outcome_N for t, e in zip(trajectories, examples, strict=True)]
    assert float(torch.cat(alone).mean()) < float(whole.outcome_N.mean())  # one response is a batch of its own


def test_what_is_too_long_is_not_judged_and_does_not_choose_the_head(trained: Path) -> None:
    made = source(trained, alpha=0.0)
    signal = made.score(*asked("1" * 80, *TEXTS))
    assert signal.outcome_N[0].isnan()
    assert signal.labels["head_means"][0] is None
    assert signal.metrics["too_long_share"] == pytest.approx(1 / 7)
    torch.testing.assert_close(signal.outcome_N[1:], made.score(*asked(*TEXTS)).outcome_N)
    assert made.score(*asked("1" * 80)).outcome_N.isnan().all()


def test_a_sigmoid_is_taken_of_each_head_before_they_are_compared(trained: Path) -> None:
    raw = source(trained, alpha=0.0).score(*asked(*TEXTS))
    bounded = source(trained, alpha=0.0, output="sigmoid").score(*asked(*TEXTS))
    mean = columns(raw)[0].sigmoid()
    torch.testing.assert_close(bounded.outcome_N, mean[:, int(mean.mean(0).argmin())])


def test_it_is_frozen(trained: Path) -> None:
    made = source(trained, alpha=0.4)
    assert made.models() == {}
    assert made.model.optimizer is None
    assert not any(p.requires_grad for p in made.model.parameters())


def test_there_is_no_alpha_by_default_and_none_outside_0_and_1(trained: Path) -> None:
    for options in ({}, {"alpha": 1.2}):
        with pytest.raises(ConfigError, match="alpha"):
            source(trained, **options)
