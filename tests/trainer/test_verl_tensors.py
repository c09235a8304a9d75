"""Our side of verl's tensors: what its queue gives and takes, and its registries. Needs verl, but neither Ray's
processes nor a model. `tests.helpers` is not imported: verl installs a package `tests`."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

core = pytest.importorskip("verl.trainer.ppo.core_algos")
pytest.importorskip("transfer_queue")

from rollout.models import load_tokenizer  # noqa: E402
from trainer.compose import load_recipe  # noqa: E402
from trainer.losses.value import ValueLossOptions  # noqa: E402
from trainer.verl import queue  # noqa: E402
from trainer.verl.registered import check  # noqa: E402
from trainer.verl.step import example_fields, example_of, verdict_fields  # noqa: E402
from trainer.verl.worker_losses import (  # noqa: E402
    BEFORE,
    CORRECTION,
    LABEL,
    REFERENCE,
    SHARE,
    VALUE_WEIGHT,
    WEIGHT,
    ImplicitLoss,
    PolicyLossOfRecipe,
    ValueLossOfRecipe,
)
from verifiers.verdict import Status, Verdict  # noqa: E402

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore")]

RECIPE = load_recipe("quickstart")
EOS = 2
LENGTHS = [3, 1, 4]
FIELDS = example_fields(example_of({"example_id": "e", "prompt": [["user", "1+1"]], "gold": "2", "meta": {}}), [5, 6])


def queued() -> Any:
    """Three responses as verl's agent loop puts them into its queue."""
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    rows = [
        {
            "prompts": torch.tensor([5, 6]),
            "responses": torch.tensor([*range(7, 6 + n), EOS]),
            "response_mask": torch.ones(n, dtype=torch.long),
            "rollout_log_probs": -torch.arange(1.0, n + 1),
            "old_log_probs": -torch.arange(1.0, n + 1) - 0.5,
            "extra_info": {"example": json.dumps(FIELDS)},
            "extra_fields": {"reward_extra_info": verdict_fields(Verdict(float(i == 0), Status.CORRECT))},
        }
        for i, n in enumerate(LENGTHS)
    ]
    return list_of_dict_to_tensordict(rows)


class Batch(SimpleNamespace):
    keys = ("b_1_0", "a_0_0", "b_0_0")
    partition_id = "train"
    tags = tuple({"response_len": n} for n in LENGTHS)


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was written to the queue."""
    written: dict[str, Any] = {}

    def kv_batch_put(keys: Any, partition_id: str, fields: Any) -> Batch:
        written.update(fields.items())
        return Batch(extra_info={})

    monkeypatch.setattr(queue.tq, "kv_batch_get", lambda keys, partition_id, select_fields: queued())
    monkeypatch.setattr(queue.tq, "kv_batch_put", kv_batch_put)
    return written


def test_rows_come_by_prompt_and_sample_and_know_their_place(put: dict[str, Any]) -> None:
    rows, at = queue.read_rows(Batch(), RECIPE, [EOS], load_tokenizer(RECIPE.model).decode)
    assert at == [2, 0, 1]
    assert [(r.trajectory.group, r.trajectory.sample) for r in rows] == [(0, 0), (0, 1), (1, 0)]
    assert [r.verdict.score for r in rows] == [0.0, 1.0, 0.0]
    assert rows[0].trajectory.logp_sampled == [-1.0, -2.0, -3.0, -4.0]
    assert rows[0].old.tolist() == [-1.5, -2.5, -3.5, -4.5]
    assert rows[0].reference is None
    assert rows[0].example == example_of(FIELDS)


def test_one_tensor_a_row_is_what_verl_stores(put: dict[str, Any]) -> None:
    values = queue.of_batch([2, 0], [torch.arange(4.0), torch.ones(3)], LENGTHS)
    batch = queue.write_tokens(Batch(extra_info={"temperature": 1.0}), {"x": values})
    assert [v.tolist() for v in put["x"].unbind()] == [[1.0, 1.0, 1.0], [0.0], [0.0, 1.0, 2.0, 3.0]]
    assert batch.extra_info == {"temperature": 1.0}


def micro_batch(fields: dict[str, list[torch.Tensor]]) -> tuple[dict[str, Any], Any]:
    """(model output, data) as verl's engine hands them to a loss: every position of prompt and response has a log-prob,
    of the token after it."""
    from verl.utils import tensordict_utils as tu

    data = queued().select("prompts", "responses", "response_mask")
    prompts = [torch.tensor([5, 6])] * len(LENGTHS)  # of one length: as the queue gives them
    for name, values in {**fields, "prompts": prompts}.items():
        data[name] = torch.nested.as_nested_tensor(values, layout=torch.jagged)
    tu.assign_non_tensor(data, dp_size=2)
    spread = [torch.cat([torch.tensor([9.0]), v, torch.tensor([9.0])]) for v in fields["logp"]]
    return {"log_probs": torch.nested.as_nested_tensor(spread, layout=torch.jagged)}, data


def tokens(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator) for n in LENGTHS]


def test_the_policy_loss_reads_verls_tensors() -> None:
    fields = {"logp": tokens(0), BEFORE: tokens(0), "advantages": tokens(1), CORRECTION: tokens(2),
              WEIGHT: [torch.full((n,), 0.5 * (i != 1)) for i, n in enumerate(LENGTHS)]}  # fmt: skip
    loss, metrics = PolicyLossOfRecipe(RECIPE.objective)(*micro_batch(fields))
    of = {name: torch.cat([values[0], values[2]]) for name, values in fields.items()}
    assert float(loss) == pytest.approx(2 * float((-of["advantages"] * of[CORRECTION] * 0.5).sum()), rel=1e-5)
    assert metrics["assay_counted_tokens"].aggregate() == 2 * 7


def test_the_implicit_loss_reads_verls_tensors() -> None:
    fields = {"logp": tokens(0), REFERENCE: tokens(1), LABEL: [torch.ones(n) for n in LENGTHS],
              SHARE: [torch.full((n,), float(i == 2)) for i, n in enumerate(LENGTHS)]}  # fmt: skip
    loss, _ = ImplicitLoss(1.0)(*micro_batch(fields))
    logit = (fields["logp"][2] - fields[REFERENCE][2]).sum()
    assert float(loss) == pytest.approx(2 * float(torch.nn.functional.softplus(-logit)), rel=1e-5)


def test_the_value_loss_reads_verls_tensors() -> None:
    share = [torch.full((n,), 0.25 * (i != 1)) for i, n in enumerate(LENGTHS)]
    fields = {"logp": tokens(0), "values": tokens(1), "returns": tokens(2), VALUE_WEIGHT: share}
    output, data = micro_batch(fields)
    loss, _ = ValueLossOfRecipe(ValueLossOptions(clip=None))({"values": output["log_probs"]}, data)
    error = torch.cat([(fields["logp"][i] - fields["returns"][i]).square() for i in (0, 2)])
    assert float(loss) == pytest.approx(2 * 0.25 * 0.5 * float(error.sum()), rel=1e-5)


@pytest.mark.skipif("assay" not in {p.name for p in entry_points(group="verl.plugins")}, reason="not installed")
def test_verl_knows_what_is_ours_and_calls_it() -> None:
    assert {"estimator assay_grpo", "loss assay_gspo", "trainer assay"} <= set(check())
    generator = torch.Generator().manual_seed(0)
    reward, mask = torch.zeros(4, 5), torch.ones(4, 5)
    reward[:, -1] = torch.rand(4, generator=generator)
    index = np.array(["a", "b", "a", "b"], dtype=object)
    ours, _ = core.get_adv_estimator_fn("assay_grpo")(
        token_level_rewards=reward, response_mask=mask, index=index, config={}
    )
    theirs, _ = core.compute_grpo_outcome_advantage(reward, mask, index)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_settings_of_a_recipe_are_keys_of_verls_configuration() -> None:
    """A key that verl does not know would be ignored there."""
    from pathlib import Path

    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from trainer.verl.translate import Files, settings

    with initialize_config_module("verl.trainer.config", version_base="1.3"):
        known = compose("ppo_trainer")
    files = Files(Path("t"), None, Path("m"), Path("a"), Path("c"), Path("critic"))
    critic = ["objective=ppo", "critic.optim.lr=1e-3"]
    recipe = load_recipe("quickstart", ["hardware=cpu", "model.lora={rank: 4, alpha: 8.0}", *critic])
    ours = settings(recipe, files, {}, [2])
    asked = [key for key in ours if not key.startswith(("assay", "ray_kwargs.ray_init"))]
    parents = {key: OmegaConf.select(known, key.rpartition(".")[0]) for key in asked}
    new = {key for key, parent in parents.items() if key.rpartition(".")[2] not in list(parent.keys())}
    optional = {f"actor_rollout_ref.{role}.fsdp_config.mixed_precision" for role in ("actor", "ref")}
    optional |= {"critic.fsdp.mixed_precision", "critic.ppo_infer_max_token_len_per_gpu"}
    assert new == optional  # of verl's dataclasses, not in the file
