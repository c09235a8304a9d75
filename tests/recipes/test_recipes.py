"""The shipped recipes and profiles."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import recipes
from data.sources import ASSETS_PREFIX, resolve_path
from prm.signal import SOURCES
from trainer.combinations import warnings
from trainer.compose import load_any, load_recipe, recipe_index
from trainer.fit_config import FitConfig
from verifiers.errors import ConfigError

FOLDER = Path(recipes.__file__).parent
NAMES = [name for name, _ in recipe_index()]
OF_REWARD_MODELS = [name for name in NAMES if isinstance(load_any(name), FitConfig)]
OF_POLICIES = [name for name in NAMES if name not in OF_REWARD_MODELS]
PROFILES = sorted(p.stem for p in (FOLDER / "hardware").glob("*.yaml"))

PROFILE_MAY_SET = {"rollout.engine", "rollout.engine_options", "rollout.dtype", "rollout.max_rows",
                   "model.compute_dtype", "model.gradient_checkpointing", "train.max_tokens_per_microbatch",
                   "train.logprob_chunk_tokens"}  # fmt: skip


def leaves(tree: dict[str, Any], key: str = "") -> dict[str, Any]:
    out = {}
    for name, value in tree.items():
        path = f"{key}.{name}" if key else name
        out |= leaves(value, path) if isinstance(value, dict) and value else {path: value}
    return out


def allowed(key: str) -> bool:
    return key.startswith("hardware.") or key in PROFILE_MAY_SET


def test_there_is_a_profile_for_a_cpu_and_for_one_and_eight_gpus() -> None:
    assert {"cpu", "gpu1", "gpu8"} <= set(PROFILES)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_sets_nothing_but_size_engine_and_placement(profile: str) -> None:
    stated = leaves(yaml.safe_load((FOLDER / "hardware" / f"{profile}.yaml").read_text()))
    assert [key for key in stated if not allowed(key)] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_the_same_algorithm_on_every_profile(name: str) -> None:
    configs = [leaves(load_any(name, [f"hardware={profile}"]).model_dump()) for profile in PROFILES]
    algorithms = [{key: value for key, value in config.items() if not allowed(key)} for config in configs]
    assert all(algorithm == algorithms[0] for algorithm in algorithms)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_composes_within_ten_seconds(name: str) -> None:
    started = time.monotonic()
    load_any(name)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_recipe_is_that_of_its_file(name: str) -> None:
    assert load_any(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_of_a_recipe_is_its_description(name: str) -> None:
    first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert first == f"# {load_any(name).description}"


@pytest.mark.parametrize("name", NAMES)
def test_the_assets_that_a_recipe_names_are_shipped(name: str) -> None:
    config = load_any(name)
    named = [v for v in leaves(config.model_dump()).values() if isinstance(v, str) and v.startswith(ASSETS_PREFIX)]
    named += [
        e.source.options["path"] for e in config.data.eval if str(e.source.options.get("path")).startswith("assets:")
    ]
    for path in named:
        assert resolve_path(path).exists()


def test_the_quickstart_trains_and_evaluates_on_disjoint_parts() -> None:
    data = load_recipe("quickstart").data
    assert data.train.part == "train"
    assert [e.source.part for e in data.eval] == ["eval"]
    assert {data.train.eval_percent} == {e.source.eval_percent for e in data.eval}


# ---- objectives --------------------------------------------------


def stated(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def stated_sources(name: str) -> list[dict[str, Any]]:
    return stated(name).get("sources", [])


OBJECTIVES = sorted(p.stem for p in (FOLDER / "objective").glob("*.yaml"))
# the recipes that are not themselves named by an objective other than the usual one, and whose rewards all of them use
GENERAL = [
    name
    for name in OF_POLICIES
    if name.removesuffix("_math").removesuffix("_chain") not in {*OBJECTIVES, "tp_grpo"} - {"grpo"}
    and not any("token_reward_R" in SOURCES.get(source["kind"]).gives for source in stated_sources(name))
    and "zero_variance" not in stated(name).get("objective", {})  # some objectives need their own
]
VOTES = [
    name for name in GENERAL if any(SOURCES.get(source["kind"]).judges == "groups" for source in stated_sources(name))
]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", GENERAL)
def test_every_recipe_composes_with_every_objective(name: str, objective: str) -> None:
    if name in VOTES and objective == "remax":
        with pytest.raises(ConfigError, match="one greedy response"):
            load_recipe(name, [f"objective={objective}"])
        return
    config = load_recipe(name, [f"objective={objective}"])
    stated = yaml.safe_load((FOLDER / "objective" / f"{objective}.yaml").read_text())["objective"]
    assert config.objective.advantage.kind == stated["advantage"]["kind"]
    assert config.objective.loss.model_dump() == stated["loss"]
    assert config.objective.reduce == stated["reduce"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_states_nothing_but_the_objective_and_its_critic(objective: str) -> None:
    stated = yaml.safe_load((FOLDER / "objective" / f"{objective}.yaml").read_text())
    assert list(stated) == (["objective", "critic"] if objective.startswith("ppo") else ["objective"])


@pytest.mark.parametrize("name", OF_POLICIES)
def test_no_shipped_recipe_is_warned_about(name: str) -> None:
    assert warnings(load_recipe(name)) == []


def test_dr_grpo_divides_by_the_response_limit_of_the_recipe() -> None:
    objective = load_recipe("quickstart", ["objective=dr_grpo", "rollout.max_response_tokens=48"]).objective
    assert objective.constant_tokens == 48
