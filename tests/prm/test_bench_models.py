"""Step scorers that run a model: which token a score is read at, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

from data import TemplateOptions
from prm.bench.models import Likelihood, LogRatio, Reading, StepClassifier, tokenise
from tests.helpers import CHAR_TOKENIZER
from verifiers import DataError
from verifiers.errors import ModelError

PLAIN = TemplateOptions(kind="plain")
LINES = Reading(PLAIN, "\n")
PROBLEM, STEPS = "3+4*2=", ["7*2", "4", "#4"]
TEXT = "7*2\n4\n#4"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHAR_TOKENIZER)


def save(kind, folder, tokenizer, seed=0, **changes):
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
                         initializer_range=0.5, **changes)  # fmt: skip
    model = kind(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("classifier")
    return str(folder), save(LlamaForTokenClassification, folder, tokenizer, num_labels=1)


@pytest.fixture(scope="module")
def causal(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("causal")
    return str(folder), save(LlamaForCausalLM, folder, tokenizer, tie_word_embeddings=True)


def whole_ids(tokenizer):
    return tokenise(PROBLEM, [TEXT], tokenizer, LINES).ids


# ---- tokens ------------------------------------------------------


def test_tokens_of_the_solution_are_those_of_the_text_as_a_whole(tokenizer):
    found = tokenise(PROBLEM, STEPS, tokenizer, LINES)
    assert tokenizer.decode(found.ids[found.first :]) == TEXT
    assert found.step_of == [0, 0, 0, 0, 1, 1, 2, 2]  # the line break ends its line


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("012+#", max_size=4), min_size=1, max_size=5))
def test_every_token_belongs_to_the_step_it_starts_in(steps):
    tokenizer = AutoTokenizer.from_pretrained(CHAR_TOKENIZER)
    found = tokenise("1+1=", steps, tokenizer, LINES)
    pieces = [step + "\n" for step in steps[:-1]] + steps[-1:]
    assert found.step_of == [i for i, piece in enumerate(pieces) for _ in piece]
    assert len(found.step_of) == len(found.ids) - found.first


def test_the_template_is_that_of_training(tokenizer):
    asked = Reading(TemplateOptions(kind="plain", prompt="Q: {question}"), "\n")
    found = tokenise(PROBLEM, STEPS, tokenizer, asked)
    assert tokenizer.decode(found.ids[: found.first]).endswith(f"Q: {PROBLEM}")


def test_an_empty_prompt_is_refused(tokenizer):
    with pytest.raises(DataError, match="empty"):
        tokenise("", STEPS, tokenizer, LINES)


# ---- classifier --------------------------------------------------


def test_a_step_is_scored_at_its_last_token(classifier, tokenizer):
    folder, model = classifier
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([whole_ids(tokenizer)])).logits[0, :, 0]
    first = len(whole_ids(tokenizer)) - len(TEXT)
    last = [first + 3, first + 5, first + 7]
    scores = StepClassifier(folder, LINES).score(PROBLEM, STEPS)
    assert scores == pytest.approx(logits[last].sigmoid().tolist(), abs=1e-6)
    assert len(set(scores)) == 3


def test_later_steps_do_not_change_a_score(classifier):
    scorer = StepClassifier(classifier[0], LINES)
    assert scorer.score(PROBLEM, [*STEPS[:2], "#9"])[:2] == pytest.approx(scorer.score(PROBLEM, STEPS)[:2], abs=1e-6)


def test_a_step_that_is_not_read_to_its_end_or_has_no_token_has_no_score(classifier, tokenizer):
    folder, first = classifier[0], len(whole_ids(tokenizer)) - len(TEXT)
    for extra, unread in [(len(TEXT), 0), (7, 1), (5, 2), (4, 2), (3, 3)]:
        scores = StepClassifier(folder, Reading(PLAIN, "\n", first + extra)).score(PROBLEM, STEPS)
        assert [score is None for score in scores] == [False] * (3 - unread) + [True] * unread
    assert StepClassifier(folder, Reading(PLAIN, "\n", 2)).score(PROBLEM, STEPS) == [None] * 3
    assert StepClassifier(folder, LINES).score(PROBLEM, ["7", ""])[1] is None


def test_longer_solutions_than_the_model_has_positions_are_cut(classifier):
    scores = StepClassifier(classifier[0], LINES).score(PROBLEM, ["1" * 30, "2" * 60])
    assert scores[0] is not None
    assert scores[1] is None


def test_a_causal_model_is_no_classifier_with_a_random_head(causal):
    with pytest.raises(ModelError, match="would be random"):
        StepClassifier(causal[0], LINES)


def test_two_labels_are_refused(tmp_path, tokenizer):
    save(LlamaForTokenClassification, tmp_path, tokenizer, num_labels=2)
    with pytest.raises(ModelError, match="2 labels"):
        StepClassifier(str(tmp_path), LINES)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="Cannot load"):
        Likelihood(str(tmp_path), LINES)


# ---- likelihood and log-ratio ------------------------------------


def token_logp(model, tokenizer):
    ids = torch.tensor([whole_ids(tokenizer)])
    with torch.no_grad():
        logp = model(input_ids=ids).logits[0].log_softmax(-1)
    return torch.stack([logp[t - 1, ids[0, t]] for t in range(ids.shape[1] - len(TEXT), ids.shape[1])])


def test_likelihood_is_the_mean_log_prob_of_a_steps_tokens(causal, tokenizer):
    logp = token_logp(causal[1], tokenizer)
    expected = [float(part.mean()) for part in logp.split([4, 2, 2])]
    assert Likelihood(causal[0], LINES).score(PROBLEM, STEPS) == pytest.approx(expected, abs=1e-5)


def test_chunks_of_the_head_do_not_change_the_likelihood(causal, monkeypatch):
    whole = Likelihood(causal[0], LINES).score(PROBLEM, STEPS)
    monkeypatch.setattr("prm.bench.models._CHUNK_TOKENS", 3)
    assert Likelihood(causal[0], LINES).score(PROBLEM, STEPS) == pytest.approx(whole, abs=1e-6)


def test_likelihood_has_no_score_for_a_prompt_that_fills_the_window(causal):
    assert Likelihood(causal[0], Reading(PLAIN, "\n", 3)).score(PROBLEM, STEPS) == [None] * 3


def test_the_implicit_reward_is_beta_times_the_summed_log_ratio(causal, tmp_path, tokenizer):
    other = save(LlamaForCausalLM, tmp_path, tokenizer, seed=1, tie_word_embeddings=True)
    ratio = token_logp(causal[1], tokenizer) - token_logp(other, tokenizer)
    scorer = LogRatio(Likelihood(causal[0], LINES), Likelihood(str(tmp_path), LINES), beta=0.5)
    expected = [0.5 * float(part.sum()) for part in ratio.split([4, 2, 2])]
    assert scorer.score(PROBLEM, STEPS) == pytest.approx(expected, abs=1e-4)


def test_a_model_against_itself_says_nothing(causal):
    model = Likelihood(causal[0], LINES)
    assert LogRatio(model, model, beta=1.0).score(PROBLEM, STEPS) == [0.0] * 3
