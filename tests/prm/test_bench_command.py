"""`assay bench prm`: the report as a whole, its files, and what it refuses before any model is loaded."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

from prm.bench import main
from prm.bench.items import Item, read_items
from prm.bench.markdown import markdown
from prm.bench.report import choose_threshold, evaluate, step_rows
from prm.bench.scorers import Scored
from tests.helpers import CHAR_TOKENIZER
from verifiers import ConfigError, DataError

DATA = Path(__file__).parent / "data"
PROCESSBENCH, PRMBENCH = str(DATA / "processbench_format.jsonl"), str(DATA / "prmbench_excerpt.jsonl")
SPLIT = "processbench_format"


def run(tmp_path, *arguments):
    out = tmp_path / "report"
    assert main([*arguments, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    report = json.loads((out / "report.json").read_text())
    assert (out / "report.md").read_text(encoding="utf-8") == markdown(report)
    return report, rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def oracle_rows(paths):
    """Perfect scores; the steps nobody knows about get 0.5."""
    scores = {True: 0.9, False: 0.1, None: 0.5}
    return [{"id": item.id, "scores": [scores[right] for right in item.truth]} for item in read_items(paths)]


# ---- whole reports -----------------------------------------------


def test_a_perfect_scorer_gets_everything_and_the_constant_the_majority(tmp_path, capsys):
    scores = write(tmp_path / "scores.jsonl", oracle_rows([PROCESSBENCH, PRMBENCH]))
    report, rows = run(tmp_path, "--data", PROCESSBENCH, "--data", PRMBENCH, "--scores", scores)
    ours, constant = report["scorers"]["scores"], report["scorers"]["constant"]
    assert ours["threshold"] == {"value": 0.5, "chosen_on": "default"}
    assert ours["mean_f1"] == 1.0
    assert ours["first_error"].keys() == {SPLIT}  # PRMBench has its own protocol
    assert ours["prmbench"]["all classes"]["prmscore"] == 1.0
    assert ours["steps"][SPLIT]["auc"] == ours["steps"][SPLIT]["within_response"] == 1.0
    assert ours["steps"][SPLIT]["brier"] == pytest.approx(0.01)
    assert constant["mean_f1"] == 0.0
    assert constant["first_error"][SPLIT]["accuracy"] == constant["first_error"][SPLIT]["majority_accuracy"]
    assert constant["prmbench"]["all classes"]["f1_neg"] == 0.0
    assert report["header"]["items"]["correct"] == 3
    assert len(rows) == 5 * (5 + 5 + 3)
    text = capsys.readouterr().out
    for heading in ("# Step scores", "## First wrong step", "## PRMBench", "## Steps", "## Whole solutions"):
        assert heading in text


def test_every_step_is_written_with_score_label_and_threshold(tmp_path):
    scores = write(tmp_path / "s.jsonl", [{"id": f"own-{i}", "scores": [0.9, 0.4, None]} for i in range(5)])
    _, rows = run(tmp_path, "--data", PROCESSBENCH, "--scores", scores, "--controls", "none", "--threshold", "0.7")
    assert len(rows) == 5
    row = next(row for row in rows if row["id"] == "own-2")
    assert (row["scores"], row["labels"], row["threshold"]) == ([0.9, 0.4, None], [1, 0, None], 0.7)
    assert (row["first_error"], row["true_first_error"], row["scorer"]) == (1, 1, "scores")


def test_scores_that_are_missing_are_wrong_predictions_and_are_counted(tmp_path):
    scores = write(tmp_path / "s.jsonl", [{"id": f"own-{i}", "scores": [None] * 3} for i in range(5)])
    report, _ = run(tmp_path, "--data", PROCESSBENCH, "--scores", scores, "--controls", "none")
    found = report["scorers"]["scores"]
    assert (found["first_error"][SPLIT]["unparsable"], found["mean_f1"]) == (5, 0.0)
    assert (found["steps_scored"], found["steps_unscored"]) == (0, 15)
    assert found["responses"][SPLIT]["left_out"] == 5


def test_a_redundancy_label_counts_where_the_class_asks_for_it(tmp_path):
    rows = oracle_rows([PRMBENCH])
    for row, item in zip(rows, read_items([PRMBENCH]), strict=True):
        row["scores"] = [0.9] * len(item.steps)
        row["redundant"] = [not right for right in item.truth]
    report, _ = run(tmp_path, "--data", PRMBENCH, "--scores", write(tmp_path / "s.jsonl", rows), "--controls", "none")
    found = report["scorers"]["scores"]["prmbench"]
    assert found["redundency"]["f1_neg"] == 1.0
    assert found["step_contradiction"]["f1_neg"] == 0.0


def test_critiques_are_a_row_of_their_own(tmp_path, capsys):
    rows = [{"id": item.id, "critiques": [rf"\boxed{{{item.first_error}}}"]} for item in read_items([PROCESSBENCH])]
    rows[0]["critiques"] = ["I cannot say."]
    report, _ = run(tmp_path, "--data", PROCESSBENCH, "--critiques", write(tmp_path / "c.jsonl", rows))
    found = report["critics"]["critiques"]["first_error"][SPLIT]
    assert (found["acc_err"], found["acc_cor"], found["unparsable"]) == (1.0, 0.5, 1)
    assert "| critiques |" in capsys.readouterr().out


def test_systematic_errors_of_a_generator_are_ranked_by_its_oracle_only(tmp_path):
    arguments = ["--generator", "chain", "--option", "count=40", "--corruption", "systematic", "--corruptions", "9"]
    report, _ = run(tmp_path, *arguments)
    random = report["scorers"]["random"]
    assert random["first_error"]["chain"]["erroneous"] > 40
    assert random["responses"]["chain"]["aggregations"].keys() >= {"prod", "mean_odds", "last"}
    assert report["scorers"]["length"]["responses"]["chain"]["aggregations"].keys() == {"min", "max", "mean", "last"}
    assert random["steps"]["chain"]["auc"] == pytest.approx(0.5, abs=0.1)


def test_one_right_solution_among_nine_is_rewardmath(tmp_path):
    arguments = [
        "--generator",
        "chain",
        "--option",
        "count=30",
        "--option",
        "operators=+-",
        "--option",
        "min_operands=5",
    ]
    arguments += ["--corruption", "systematic", "--error-rate", "0.9", "--corruptions", "9"]
    report, _ = run(tmp_path, *arguments)
    found = report["scorers"]["constant"]["responses"]["chain"]["aggregations"]["min"]
    assert found["rewardmath"]["accuracy"] == 0.0
    assert found["rewardmath"]["accuracy_with_ties"] == 1.0
    assert found["rewardmath"]["random_accuracy"] == pytest.approx(0.1, abs=0.05)
    assert found["auc"] == found["pairwise_accuracy"] == 0.5


def test_the_control_random_follows_the_seed(tmp_path):
    arguments = ["--data", PROCESSBENCH, "--controls", "random"]
    first, second, other = (run(tmp_path, *arguments, "--seed", seed)[1] for seed in ("1", "1", "2"))
    assert first == second != other


def test_models_are_scorers(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(CHAR_TOKENIZER)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": len(tokenizer), "max_position_embeddings": 128}  # fmt: skip
    folders = {}
    for kind in (LlamaForTokenClassification, LlamaForCausalLM):
        torch.manual_seed(0)
        folders[kind] = str(tmp_path / kind.__name__)
        kind(LlamaConfig(num_labels=1, **size)).save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    causal = folders[LlamaForCausalLM]
    arguments = ["--model", folders[LlamaForTokenClassification], "--likelihood", causal, "--implicit", causal]
    arguments += ["--reference", causal, "--generator", "chain", "--option", "count=5"]
    report, rows = run(tmp_path, *arguments)
    assert list(report["scorers"]) == ["model", "implicit", "likelihood", "length", "position", "constant", "random"]
    assert report["scorers"]["model"]["scale"] == "probability"
    assert report["scorers"]["likelihood"]["threshold"]["chosen_on"] == "these very items (optimistic)"
    assert all(score == 0 for row in rows if row["scorer"] == "implicit" for score in row["scores"])
    assert all(0 < score < 1 for row in rows if row["scorer"] == "model" for score in row["scores"])


# ---- thresholds --------------------------------------------------


def items_of(split, truths):
    return [
        Item(f"{split}-{i}", "processbench", split, str(i), "p", ("s",) * len(truth), truth, None)
        for i, truth in enumerate(truths)
    ]


def test_a_threshold_is_chosen_on_the_named_split_only():
    items = items_of("gsm8k", [(True, False), (True, True)]) + items_of("math", [(True, False), (True, True)])
    scores = {"gsm8k-0": [5, 1], "gsm8k-1": [5, 5], "math-0": [50, 10], "math-1": [50, 50]}
    scored = Scored("x", "real", scores)
    assert choose_threshold(scored, items, given=None, split="math")[1] == "split math"
    threshold, how = choose_threshold(scored, items, given=None, split=None)
    assert (how, 1 < threshold <= 5) == ("split gsm8k", True)
    found = evaluate(scored, items, threshold, how)["first_error"]
    assert (found["gsm8k"]["f1"], found["math"]["f1"]) == (1.0, 0.0)
    assert choose_threshold(scored, items, given=2.5, split=None) == (2.5, "given")
    assert step_rows(scored, items, 2.5)[0]["labels"] == [1, 0]


def test_a_probability_has_its_threshold_unless_a_split_is_named():
    items = items_of("gsm8k", [(True, False), (True, True)])
    scored = Scored("x", "probability", {"gsm8k-0": [0.9, 0.8], "gsm8k-1": [0.9, 0.9]})
    assert choose_threshold(scored, items, given=None, split=None) == (0.5, "default")
    assert choose_threshold(scored, items, given=None, split="gsm8k")[0] == pytest.approx(0.85)


def test_steps_after_the_first_error_count_in_one_auc_only():
    items = items_of("x", [(True, False, True)])
    found = evaluate(Scored("x", "real", {"x-0": [3.0, 2.0, 1.0]}), items, 0.0, "given")["steps"]["x"]
    assert (found["auc"], found["auc_to_first_error"]) == (0.5, 1.0)


# ---- refusals ----------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to score"),
        (["--data", PROCESSBENCH, "--option", "count=3"], "belong to a generator"),
        (["--data", PROCESSBENCH, "--implicit", "x"], "two models"),
        (["--data", PROCESSBENCH, "--threshold", "1", "--threshold-split", "x"], "not both"),
        (["--data", PROCESSBENCH, "--threshold-split", "x"], "no threshold"),
        (["--data", PROCESSBENCH, "--controls", "lenght"], "did you mean 'length'"),
        (["--generator", "chain", "--option", "count"], "not KEY=VALUE"),
        (["--generator", "chain", "--option", "cuont=3"], "cuont"),
        (["--generator", "chian"], "did you mean 'chain'"),
        (["--data", PROCESSBENCH, "--model", "x", "--prompt", "no question"], "must contain"),
    ],
)
def test_wrong_arguments_are_refused_with_a_reason(arguments, message):
    with pytest.raises(ConfigError, match=message):
        main(arguments)


def test_a_critique_says_nothing_about_every_step(tmp_path):
    with pytest.raises(DataError, match="every step"):
        main(["--data", PRMBENCH, "--critiques", write(tmp_path / "c.jsonl", [])])


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_scored(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="folder"):
        main(["--data", PROCESSBENCH, "--out", str(tmp_path / "file" / "x")])
