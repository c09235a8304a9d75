"""Recipes and overrides: what composes, and what is refused with which message."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from trainer.compose import (
    load_any,
    load_any_resolved,
    load_recipe,
    load_resolved,
    recipe_index,
    to_yaml,
    validate,
)
from verifiers.errors import ConfigError

OWN = """
defaults:
  - model: smollm2_135m_instruct
  - data: chain
  - _self_
  - hardware: cpu
name: own
description: a recipe of one's own
seed: 1
sources: [{kind: rule}]
rollout: {prompts_per_step: 2, samples_per_prompt: 2, max_response_tokens: 8}
objective: {advantage: {kind: grpo}, loss: {kind: ppo_clip}}
optim: {lr: 1e-3}
train: {steps: 1, max_tokens_per_microbatch: 100}
"""


def write(folder: Path, text: str, name: str = "own.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


# Faults. Each: overrides to the quickstart, what the message must name, what the fix must say. ------------------------

OVERRIDE_FAULTS = {
    "typo at the root": (["hardwear=gpu1"], "unknown key 'hardwear'", "did you mean 'hardware'"),
    "typo one level down": (
        ["rollout.promts_per_step=4"],
        "unknown key 'rollout.promts_per_step'",
        "did you mean 'prompts_per_step'",
    ),
    "typo two levels down": (
        ["objective.zero_variance.dropp=true"],
        "unknown key 'objective.zero_variance.dropp'",
        "did you mean 'drop'",
    ),
    "typo in a list item": (["sources.0.wieght=2"], "unknown key 'sources.0.wieght'", "did you mean 'weight'"),
    "typo in the options of a verifier": (
        ["verifier.timout_s=4"],
        "unknown key 'verifier.timout_s' of kind 'exact'",
        "did you mean 'timeout_s'",
    ),
    "typo in the options of a loss": (
        ["objective.loss.clip_hi=0.3"],
        "unknown key 'objective.loss.clip_hi' of kind 'ppo_clip'",
        "did you mean 'clip_high'",
    ),
    "typo in the options of an advantage": (
        ["objective.advantage.normalise_std=false"],
        "objective.advantage.normalise_std",
        "did you mean 'normalize_std'",
    ),
    "typo in the options of a data source": (
        ["data.train.max_operand=4"],
        "unknown key 'data.train.max_operand' of kind 'chain'",
        "did you mean 'max_operands'",
    ),
    "typo in an evaluation set": (
        ["data.eval.0.source.cuont=4"],
        "unknown key 'data.eval.0.source.cuont'",
        "did you mean 'count'",
    ),
    "options of another kind left behind": (
        ["verifier.kind=math"],
        "'verifier.marker' of kind 'math'",
        "~verifier.marker",
    ),
    "text for a number": (["optim.lr=fast"], "optim.lr: Input should be a valid number (got 'fast'", "assay check"),
    "float for an integer": (["train.steps=2.5"], "train.steps: Input should be a valid integer", "got 2.5"),
    "boolean for an integer": (["seed=true"], "seed: Input should be a valid integer", "got True"),
    "number for a mapping": (["optim=3"], "optim: Input should be a valid dictionary", "got 3"),
    "negative size": (["rollout.max_rows=0"], "rollout.max_rows", "greater than or equal to 1"),
    "word that is no choice": (
        ["objective.reduce=mean"],
        "objective.reduce",
        "'token', 'sequence', 'sequence_sum' or 'constant'",
    ),
    "unknown verifier": (["verifier.kind=exakt"], "Unknown verifier 'exakt'", "did you mean 'exact'"),
    "unknown data source": (["data.train.kind=chian"], "Unknown data source 'chian'", "did you mean 'chain'"),
    "unknown reward source": (["sources.0.kind=rul"], "Unknown reward source 'rul'", "did you mean 'rule'"),
    "unknown advantage": (
        ["objective.advantage.kind=gpro"],
        "Unknown advantage estimator 'gpro'",
        "did you mean 'grpo'",
    ),
    "unknown loss": (["objective.loss.kind=ppo"], "Unknown policy loss 'ppo'", "ppo_clip"),
    "unknown engine": (["rollout.engine=torhc"], "Unknown rollout engine 'torhc'", "did you mean 'torch'"),
    "own part that cannot be imported": (
        ["verifier.kind=my_module:Verifier"],
        "Cannot import verifier 'my_module:Verifier'",
        "PYTHONPATH",
    ),
    "own part of the wrong sort": (["verifier.kind=json:JSONDecoder"], "'json:JSONDecoder'", "model named Options"),
    "one sample a prompt under GRPO": (
        ["rollout.samples_per_prompt=1"],
        "samples_per_prompt must be at least 2",
        "grpo",
    ),
    "mini-batches that do not divide": (
        ["train.minibatches_per_step=5", "rollout.prompts_per_step=32"],
        "minibatches_per_step=5 must divide",
        "=32",
    ),
    "top-p without correction": (["rollout.top_p=0.9"], "rollout.top_p < 1", "objective.mismatch.kind=truncated"),
    "longer than the model": (
        ["rollout.max_response_tokens=999", "model.scratch.max_positions=300"],
        "exceeds model.scratch.max_positions",
        "300",
    ),
    "two origins of the model": (["model.path=x"], "exactly one of model.path and model.scratch", "assay check"),
    "no tokenizer": (["model.tokenizer=null"], "model.scratch needs model.tokenizer", "hub id"),
    "heads that do not divide": (
        ["model.scratch.num_heads=3", "model.scratch.hidden_size=128"],
        "hidden_size=128 must be an even multiple",
        "num_heads=3",
    ),
    "soft overlong without a buffer": (
        ["objective.overlong.kind=soft"],
        "buffer_tokens is for kind=soft",
        "needed there",
    ),
    "overlong buffer beyond the limit": (
        ["objective.overlong={kind: soft, buffer_tokens: 25}", "rollout.max_response_tokens=24"],
        "buffer_tokens=25 exceeds",
        "max_response_tokens=24",
    ),
    "constant reduction without a constant": (
        ["objective.reduce=constant"],
        "constant_tokens is for reduce=constant",
        "",
    ),
    "refills of groups that are kept": (
        ["objective.zero_variance.drop=false", "objective.zero_variance.max_refills=2"],
        "max_refills=2 replaces dropped groups",
        "set drop=true",
    ),
    "empty difficulty band": (
        ["data.difficulty={low: 0.9, high: 0.1, probe_samples: 4}"],
        "data.difficulty: low=0.9 exceeds high=0.1",
        "",
    ),
    "evaluation without a set": (
        ["data.eval=[]"],
        "eval.every_steps is set and data.eval is empty",
        "every_steps=null",
    ),
    "best by an unknown set": (["checkpoint.best_by=math/avg@4"], "checkpoint.best_by='math/avg@4'", "chain/"),
    "unknown group choice": (["hardware=gpu9"], "Unknown choice 'gpu9' for the group 'hardware'", "cpu, gpu1, gpu8"),
    "no value": (["optim.lr"], "'optim.lr' cannot be read: it is not of the form", "key.path=value"),
    "several values": (["optim.lr=1,2"], "it gives several values", "[1,2]"),
    "bracket left open": (["rollout.stop=[a"], "'rollout.stop=[a' cannot be read", "key.path=[1,2]"),
    "unquoted text with an equals sign": (["template.prompt=a=b"], "'template.prompt=a=b' cannot be read", "twice"),
    "left open": (["optim.lr=???"], "leaves open: optim.lr", "optim.lr=..."),
    "interpolation of nothing": (["optim.lr=${no.such}"], "Interpolation key 'no.such' not found", "must name a key"),
    "unset variable": (["run.dir=${oc.env:ASSAY_NOT_SET}"], "'ASSAY_NOT_SET' not found", "variable that is set"),
    "list item that does not exist": (["sources.3.weight=2"], "list item that does not exist", "numbered from 0"),
    "word for a list index": (["sources.x=2"], "list item that does not exist", "numbered from 0"),
    "removal of nothing": (["~warm_strat"], "'warm_strat' does not exist", "overrides"),
    "settings of hydra": (["hydra.run.dir=x"], "would do nothing", "key.path=value"),
}


@pytest.mark.parametrize(("overrides", "cause", "fix"), OVERRIDE_FAULTS.values(), ids=OVERRIDE_FAULTS.keys())
def test_a_faulty_override_is_refused_with_its_key_and_the_fix(overrides: list[str], cause: str, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe("quickstart", overrides)
    assert cause in str(error.value)
    assert fix in str(error.value)


FILE_FAULTS = {
    "bad indentation": ("name: a\n  seed: 1\n", "not valid YAML", "line 2"),
    "bracket left open": ("name: [a\nseed: 1\n", "not valid YAML", "line 2"),
    "key stated twice": ("seed: 1\nname: a\nseed: 2\n", "duplicate key", "line 3"),
    "unknown group in the defaults": ("defaults: [engine: fast, _self_]\n", "engine/fast", "shipped groups"),
    "unknown choice in the defaults": (
        "defaults: [hardware: gpu9, _self_]\n",
        "Could not find 'hardware/gpu9'",
        "cpu, gpu1, gpu8",
    ),
    "unknown recipe in the defaults": (
        "defaults: [quikstart, _self_]\n",
        "'quikstart'",
        "quickstart, rloo_math, smollm2_mawps",
    ),
    "defaults that would win over the file": ("defaults: [quickstart]\nseed: 5\n", "defaults list", "- _self_"),
    "a list and not a mapping": ("- name: a\n", "cannot be composed", "own.yaml"),
    "empty": ("", "missing key 'model'", "must be set"),
}


@pytest.mark.parametrize(("text", "cause", "fix"), FILE_FAULTS.values(), ids=FILE_FAULTS.keys())
def test_a_faulty_file_is_refused_with_place_and_cause(tmp_path: Path, text: str, cause: str, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe(write(tmp_path, text))
    assert cause in str(error.value)
    assert fix in str(error.value)


def test_an_unknown_recipe_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        load_recipe("quikstart")


def test_a_missing_file_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    write(tmp_path, OWN, "mine.yaml")
    with pytest.raises(ConfigError, match=r"did you mean 'mine\.yaml'"):
        load_recipe(str(tmp_path / "mime.yaml"))


def test_a_file_that_is_not_named_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"end in \.yaml"):
        load_recipe(write(tmp_path, OWN, "own.yml"))


def test_all_problems_of_a_recipe_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe("quickstart", ["optim.lr=fast", "rollout.temprature=1", "train.steps=-1"])
    for key in ("optim.lr", "rollout.temprature", "train.steps"):
        assert key in str(error.value)


def test_a_group_that_the_recipe_does_not_use_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, to_yaml(load_recipe("quickstart")))
    with pytest.raises(ConfigError, match="no such group in its defaults list"):
        load_recipe(path, ["hardware=gpu1"])


# What composes --------------------------------------------------------------------------------------------------------


def test_overrides_reach_every_depth_and_kind_of_value() -> None:
    config = load_recipe(
        "quickstart",
        [
            "seed=7",
            "optim.lr=1e-3",
            "sources.0.weight=2",
            "data.eval[0].name=other",
            'rollout.stop=["a, b",c]',
            "warm_start=null",
            "~eval",
            'template.prompt="a=b, {question}"',
            "objective.loss.dual_clip=3",
            "run.dir=some/where",
            "+train.steps=5",
        ],
    )
    assert config.seed == 7
    assert config.optim.lr == 1e-3
    assert config.sources[0].weight == 2.0
    assert config.data.eval[0].name == "other"
    assert config.rollout.stop == ["a, b", "c"]
    assert config.warm_start is None
    assert config.eval.every_steps is None
    assert config.template.prompt == "a=b, {question}"
    assert config.objective.loss.options["dual_clip"] == 3
    assert config.run.dir == "some/where"
    assert config.train.steps == 5


def test_a_group_choice_wins_over_the_recipe_and_a_value_over_the_group() -> None:
    assert load_recipe("quickstart").rollout.dtype == "float32"
    assert load_recipe("quickstart", ["hardware=gpu1"]).rollout.dtype == "bfloat16"
    assert load_recipe("quickstart", ["rollout.dtype=float32", "hardware=gpu1"]).rollout.dtype == "float32"


def test_an_own_recipe_anywhere_may_name_the_shipped_groups(tmp_path: Path) -> None:
    folder = tmp_path / "a folder" / "v2.x"
    folder.mkdir(parents=True)
    path = write(folder, OWN, "my.own.v1.yaml")
    config = load_recipe(path, ["hardware=gpu8"])
    assert (config.name, config.hardware.device) == ("own", "cuda")
    assert config.model.path == load_recipe("smollm2_mawps").model.path


def test_an_own_recipe_may_build_on_a_shipped_one(tmp_path: Path) -> None:
    text = "defaults:\n  - quickstart\n  - override hardware: gpu1\n  - _self_\nname: mine\noptim: {lr: 0.5}\n"
    config = load_recipe(write(tmp_path, text))
    assert (config.name, config.optim.lr, config.hardware.device) == ("mine", 0.5, "cuda")
    assert config.optim.warmup_steps == load_recipe("quickstart").optim.warmup_steps


def test_an_own_folder_may_add_choices_to_a_group(tmp_path: Path) -> None:
    (tmp_path / "hardware").mkdir()
    write(tmp_path / "hardware", "# @package _global_\nhardware: {device: mps}\n", "mac.yaml")
    assert load_recipe(write(tmp_path, OWN), ["hardware=mac"]).hardware.device == "mps"


def test_a_part_of_ones_own_brings_its_own_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from verifiers.exact import ExactVerifier\n"
        "from verifiers.options import Options as Base\n"
        "class Mine(ExactVerifier):\n"
        "    class Options(Base):\n"
        "        colour: str\n"
    )
    (tmp_path / "own_verifier_of_test.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = "verifier={kind: 'own_verifier_of_test:Mine', marker: null, numeric: null, colour: red}"
    with pytest.raises(ConfigError, match=r"unknown key 'verifier\.marker'"):
        load_recipe("quickstart", [kind])
    config = load_recipe("quickstart", ["~verifier", kind.replace("marker: null, numeric: null, ", "")])
    assert config.verifier.options == {"colour": "red"}


@pytest.mark.parametrize("name", [name for name, _ in recipe_index()])
def test_the_resolved_yaml_gives_back_the_same_configuration(tmp_path: Path, name: str) -> None:
    config = load_any(name)
    path = write(tmp_path, to_yaml(config), "resolved.yaml")
    assert load_any_resolved(path) == config
    assert load_any(path) == config


def test_the_resolved_yaml_keeps_texts_that_look_like_something_else(tmp_path: Path) -> None:
    texts = ["1e5", "null", "yes", "0x10", "1_000", " a: b ", "#x", "über\nzwei", "'", "1.5e-3", "~", "12:30:00"]
    config = load_recipe("quickstart").model_copy(update={"description": "1e5"})
    config = validate({**config.model_dump(), "rollout": {**config.rollout.model_dump(), "stop": texts}})
    path = write(tmp_path, to_yaml(config), "resolved.yaml")
    assert load_resolved(path).rollout.stop == texts
    assert load_recipe(path).rollout.stop == texts
    assert load_recipe(path).description == "1e5"


def test_a_damaged_resolved_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_resolved(write(tmp_path, "a: [1", "resolved.yaml"))
    with pytest.raises(ConfigError, match="holds no configuration"):
        load_resolved(write(tmp_path, "- 1", "resolved.yaml"))
    with pytest.raises(ConfigError, match="Cannot read"):
        load_resolved(tmp_path / "none.yaml")


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("quickstart").seed = 3  # type: ignore[misc]


def test_composing_is_safe_in_threads_and_leaves_nothing_behind() -> None:
    with ThreadPoolExecutor(4) as pool:
        seeds = list(pool.map(lambda seed: load_recipe("quickstart", [f"seed={seed}"]).seed, range(8)))
    assert seeds == list(range(8))
    assert not GlobalHydra.instance().is_initialized()


def test_the_index_shows_every_shipped_recipe_with_one_line() -> None:
    index = dict(recipe_index())
    assert {"quickstart", "smollm2_mawps", "grpo_math"} <= set(index)
    assert all(text and "\n" not in text for text in index.values())


def test_yaml_output_is_plain_yaml() -> None:
    config = load_recipe("grpo_math")
    assert yaml.safe_load(to_yaml(config))["model"]["path"] == config.model.path
