"""`assay bench iou`: what it measures, what it writes, and that it notices what does not hold."""

import json

import pytest

from verifiers import ConfigError
from verifiers.visual import bench


@pytest.fixture(scope="module")
def report():
    return bench.run(seconds=0.1)


def test_everything_that_must_hold_does(report):
    assert report["failures"] == []
    assert all(report["perturbed"]["laws"].values())


def test_the_golden_cases_are_all_there(report):
    golden = report["golden"]
    assert golden["cases"] == 51
    assert golden["equal"] + golden["deviating_on_purpose"] == golden["cases"]


def test_perturbed_boxes_are_scored_on_every_photograph(report):
    rows = report["perturbed"]["rows"]
    assert report["perturbed"]["images"] == 75
    assert rows["exact"]["score"] == 1.0
    assert rows["another label"]["iou"] == rows["corners reversed"]["iou"] == rows["No Objects"]["iou"] == 0
    assert all(row["unscored"] == 0 for row in rows.values())


def test_absent_categories_lower_map(report):
    pytest.importorskip("pycocotools")
    assert report["map"]["all"]["mAP"] < report["map"]["present"]["mAP"]


def test_main_writes_markdown_and_json(tmp_path, capsys):
    assert bench.main(["--out", str(tmp_path / "new"), "--seconds", "0.1"]) == 0
    written = json.loads((tmp_path / "new" / "bench_iou.json").read_text(encoding="utf-8"))
    text = (tmp_path / "new" / "bench_iou.md").read_text(encoding="utf-8")
    assert text == bench.markdown(written)
    assert text in capsys.readouterr().out
    for heading in ("Golden cases", "Hostile outputs", "Perturbed boxes", "mAP", "Throughput"):
        assert f"## {heading}" in text


def test_a_folder_without_golden_files_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no golden files"):
        bench.run(tmp_path, seconds=0.1)


def test_an_installation_without_golden_files_says_that_they_were_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "DEFAULT_GOLDEN", tmp_path)
    assert bench.golden_section(tmp_path) is None
    assert "Not measured" in bench.markdown({**bench.run(tmp_path, seconds=0.1)})


def test_a_changed_golden_value_is_noticed(tmp_path):
    for name in bench.GOLDEN_FILES:
        records = json.loads((bench.DEFAULT_GOLDEN / name).read_text(encoding="utf-8"))
        for record in records:
            if record["notes"] == "perfect single conf 1":
                record["outputs"]["math_verify_disabled"]["iou"] = 0.5
        (tmp_path / name).write_text(json.dumps(records), encoding="utf-8")
    section = bench.golden_section(tmp_path)
    assert section["equal"] + section["deviating_on_purpose"] == section["cases"] - 1
    assert bench.run(tmp_path, seconds=0.1)["failures"] == [
        "golden case 'perfect single conf 1' differs and should not"
    ]


def test_a_law_that_does_not_hold_is_noticed():
    scores = {name: [1.0, 1.0] for name in bench.PERTURBATIONS}
    scores["half, and 5 spurious boxes, confidence 0"] = [1.0, 1.1]
    laws = bench._laws(scores)
    assert [law for law, holds in laws.items() if not holds] == ["spurious boxes never raise the score"]
