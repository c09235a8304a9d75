"""pass@k against the reference estimator; its trap is a negative test."""

import json
from pathlib import Path

import pytest

from trainer.evaluate import pass_at_k

pytestmark = pytest.mark.golden

RECORDS = json.loads((Path(__file__).parent / "pass_at_k.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("record", [pytest.param(r, id=r["case"]) for r in RECORDS if r["case"] != "n_less_than_k"])
def test_pass_at_k_equals_the_reference(record):
    i = record["inputs"]
    found = [pass_at_k(n, c, i["k"]) for n, c in zip(i["n"], i["c"], strict=True)]
    assert found == pytest.approx(record["outputs"]["pass_at_k"], abs=1e-12)


def test_fewer_samples_than_k_is_refused_where_the_reference_claims_certainty():
    record = next(r for r in RECORDS if r["case"] == "n_less_than_k")
    assert set(record["outputs"]["pass_at_k"]) == {1.0}  # with 0 of 4 correct: the defect
    for n, c in zip(record["inputs"]["n"], record["inputs"]["c"], strict=True):
        with pytest.raises(ValueError, match="samples"):
            pass_at_k(n, c, record["inputs"]["k"])
