"""The embedding surrogate: what the number is, that nothing beside a text changes it, and what is not judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from data.example import Example, Message
from prm.embedding import Embedding, similarity
from prm.signal import SOURCES
from rollout.world import World
from tests.helpers import make_config, source_context, tiny_model, tokenizer, trajectory
from tests.prm.test_hybrid import hybrid_of
from verifiers.errors import ConfigError, ModelError
from verifiers.options import parse_options
from verifiers.runner import Runner

TEXTS = ["the cat sat on the mat", "a cat", "The answer is 7, since 3+4=7.", "7", "no"]


def tiny_encoder(kind: str) -> Any:
    sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 66, "pad_token_id": 0,
             "initializer_range": 0.3}  # fmt: skip
    torch.manual_seed(0)
    if kind == "llama":
        return tiny_model()
    return BertModel(BertConfig(**sizes)) if kind == "bert" else RobertaModel(RobertaConfig(**sizes))


@pytest.fixture(scope="module", params=["bert", "roberta", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bidirectional encoder, one that counts positions from its pad token on, and a decoder."""
    return made_folder(request.param, tmp_path_factory.mktemp(request.param))


def made_folder(kind: str, path: Path) -> Path:
    tiny_encoder(kind).save_pretrained(path)
    own = tokenizer()
    own.model_max_length = 64
    own.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_folder("bert", tmp_path_factory.mktemp("bert_alone"))


def source(path: Path, tokens_per_batch: int = 4096, **options: Any) -> Embedding:
    cls = SOURCES.get("embedding")
    made = parse_options(cls.Options, {"path": str(path), **options}, "sources.0")
    config = make_config({"train.max_tokens_per_microbatch": tokens_per_batch})
    return cls(made, source_context(Runner("exact", {}), config))  # type: ignore[return-value]


def asked(reference: Any, *texts: str) -> tuple[list[Any], list[Example]]:
    return [trajectory([1], [2], text=t) for t in texts], [Example("q", (Message("user", "?"),), reference)] * len(
        texts
    )


def vectors(made: Embedding, texts: list[str], tokens: int = 4096, world: World | None = None) -> torch.Tensor:
    ids = [made.encoder.ids(text) for text in texts]
    assert all(ids)
    return torch.stack(made.encoder.vectors([i for i in ids if i], tokens, world or World()))


# ---- the number ----------------------------------------------------


def test_the_reference_itself_is_worth_1_and_everything_lies_between_0_and_1(folder: Path) -> None:
    found = source(folder).score(*asked(TEXTS[0], *TEXTS)).outcome_N
    assert float(found[0]) == pytest.approx(1.0, abs=1e-6)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert len(set(found.tolist())) == len(TEXTS)
    assert int(found.argmax()) == 0


def test_equal_opposed_and_unrelated_vectors_are_worth_1_0_and_a_half() -> None:
    a, b = torch.tensor([[1.0, 2.0]] * 3), torch.tensor([[2.0, 4.0], [-1.0, -2.0], [2.0, -1.0]])
    assert similarity(a, b).tolist() == pytest.approx([1, 0, 0.5], abs=1e-6)


def test_a_vector_is_the_mean_of_the_last_hidden_states_of_the_text_alone(folder: Path) -> None:
    made = source(folder)
    for text, vector in zip(TEXTS, vectors(made, TEXTS), strict=True):
        with torch.no_grad():
            alone = made.encoder.model(torch.tensor([made.encoder.ids(text)])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.invariance
def test_neither_padding_nor_the_batch_nor_the_ranks_change_a_vector(folder: Path) -> None:
    made = source(folder)
    whole = vectors(made, TEXTS)
    torch.testing.assert_close(vectors(made, TEXTS, tokens=1), whole, rtol=1e-4, atol=1e-5)  # one by one: no padding
    torch.testing.assert_close(vectors(made, TEXTS[::-1], tokens=60).flip(0), whole, rtol=1e-4, atol=1e-5)


def test_each_rank_reads_its_share_of_the_texts(bert: Path) -> None:
    made = source(bert)
    whole, shares = vectors(made, TEXTS), list[dict[int, torch.Tensor]]()

    class Rank(World):
        def union(self, mine):
            shares.append(dict(mine))
            return dict(enumerate(whole))

    for rank in (0, 1):
        vectors(made, TEXTS, world=Rank(rank, 2))
    assert sorted([*shares[0], *shares[1]]) == [0, 1, 2, 3, 4]
    assert min(map(len, shares)) > 0
    for share in shares:
        for i, vector in share.items():
            torch.testing.assert_close(vector, whole[i], rtol=1e-4, atol=1e-5)


def test_the_encoder_is_frozen_and_in_float32(bert: Path) -> None:
    made = source(bert)
    assert {p.dtype for p in made.encoder.model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in made.encoder.model.parameters())
    assert not made.encoder.model.training
    assert made.models() == {}


def test_a_reference_that_is_no_text_is_read_as_json(bert: Path) -> None:
    assert float(source(bert).score(*asked([1, 2], "[1, 2]")).outcome_N[0]) == pytest.approx(1.0, abs=1e-6)


# ---- what is not judged --------------------------------------------


def test_an_empty_response_and_one_that_is_too_long_are_not_judged(bert: Path) -> None:
    made = source(bert, max_tokens=20)
    signal = made.score(*asked("a cat", "a cat", "", " \n", "x" * 21, "x" * 20))
    assert signal.outcome_N.isnan().tolist() == [False, True, True, True, False]
    assert signal.metrics["empty_share"] == pytest.approx(2 / 5)
    assert signal.metrics["too_long_share"] == pytest.approx(1 / 5)


def test_a_reference_without_text_or_too_long_judges_nothing(bert: Path) -> None:
    for reference in ("", "x" * 65):
        assert source(bert).score(*asked(reference, "a cat")).outcome_N.isnan().all()


def test_the_default_limit_is_what_the_model_can_read_and_more_is_refused(bert: Path) -> None:
    assert source(bert).encoder.max_tokens == 64
    with pytest.raises(ConfigError, match="at most 64"):
        source(bert, max_tokens=65)


def test_a_folder_without_an_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)) as caught:
        source(tmp_path)
    assert "where: sources, kind embedding, path" in str(caught.value)


# ---- as the model of hybrid ----------------------------------------


def test_hybrid_asks_it_about_open_ended_answers_and_leaves_the_others_to_the_rule(bert: Path) -> None:
    open_ended, plain = (Example("q", (Message("user", "?"),), "7", meta={"open_ended": o}) for o in (True, False))
    with Runner("exact", {"marker": "#"}) as runner:
        made = hybrid_of({"kind": "embedding", "path": str(bert)}, runner)
        responses = [trajectory([1], [2], text=text) for text in ("7", "so 9", "#7", "#8", "")]
        signal = made.score(responses, [open_ended, open_ended, plain, plain, open_ended])
    alone = source(bert).score(responses[:2], [open_ended] * 2)
    torch.testing.assert_close(signal.outcome_N[:2], alone.outcome_N)
    assert float(signal.outcome_N[0]) == pytest.approx(1.0, abs=1e-6)
    assert signal.outcome_N[2:4].tolist() == [1, 0]
    assert signal.outcome_N[4].isnan()
    assert signal.metrics["model/empty_share"] == pytest.approx(1 / 3)
