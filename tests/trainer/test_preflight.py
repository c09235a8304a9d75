"""What `assay check` says of folders that a recipe names."""

from typing import Any

import pytest

from tests.helpers import make_config
from trainer.preflight import check
from verifiers.errors import ModelError

MISSING = "runs/nobody/checkpoints/step-000001"
PART = {"kind": "verify_rm", "path": MISSING}
NAMES_A_FOLDER: list[tuple[dict[str, Any], str]] = [
    (PART, "path"),
    ({"kind": "bt_rm", "path": MISSING}, "path"),
    ({"kind": "brme", "path": MISSING, "alpha": 0.5}, "path"),
    ({"kind": "conciseness", "path": MISSING}, "path"),
    ({"kind": "step_prm", "path": MISSING}, "path"),
    ({"kind": "orm", "path": MISSING}, "path"),
    ({"kind": "cooper", "path": MISSING, "optim": {"lr": 1e-3}, "assistant": {"kind": "corrupt"}}, "path"),
    ({"kind": "ensemble", "members": [PART, PART]}, "members.0.path"),
    ({"kind": "hybrid", "model": PART}, "model.path"),
]


@pytest.mark.parametrize(("part", "key"), NAMES_A_FOLDER, ids=[part["kind"] for part, _ in NAMES_A_FOLDER])
def test_a_reward_model_that_is_not_there_stops_the_check_and_names_its_key(part: dict[str, Any], key: str) -> None:
    with pytest.raises(ModelError, match=r"There (is no reward model|are no weights)") as error:
        check(make_config({"sources": [{"kind": "rule"}, part]}))
    assert error.value.where == f"sources.1.{key}"
