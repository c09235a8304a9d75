"""Recipe + overrides -> the frozen `Config`. Hydra composes, our typed tree validates.

Every fault a recipe can have ends in one `ConfigError` that names the key or the file, the cause and the fix.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

import recipes
from trainer.config import Config, Part
from trainer.fit_config import FitConfig
from verifiers.errors import ConfigError, did_you_mean
from verifiers.options import parse_options

RECIPES = Path(recipes.__file__).parent
RECORDED_FACTS = ("derived", "environment")  # stand beside the settings in a run's resolved.yaml
_HYDRA_LOCK = threading.Lock()  # Hydra keeps the configuration it composes in one global object
_KEY = re.compile(r"[A-Za-z_][\w.\-]*(\[\d+\][\w.\-]*)*")
_INDEX = re.compile(r"\[(\d+)\]")
_WHOLE_PART = re.compile(r"\{.*\bkind\s*:", re.DOTALL)


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """`load_any` of a recipe of reinforcement learning. Raises `ConfigError` for one of another form."""
    config = load_any(recipe, overrides)
    if isinstance(config, FitConfig):
        raise ConfigError(f"The recipe '{recipe}' trains a reward model.", where=recipe,
                          fix="`assay train` takes it; its evaluations are part of the run")  # fmt: skip
    return config


def load_any(recipe: str, overrides: Sequence[str] = ()) -> Config | FitConfig:
    """The validated configuration of a shipped recipe (by name) or of your own file (a path ending in ``.yaml``); with
    a key ``reward_model`` it is the recipe of a reward model.

    overrides: ``key.path=value``; ``~key`` to remove one; ``group=choice`` for the groups (folders) of the recipes,
    such as ``hardware=gpu1``. Your own file may name shipped groups and recipes in its defaults list. Thread safe.
    Raises `ConfigError`.
    """
    path = _find(recipe)
    groups = _groups(path.parent)
    arguments = [argument for text in overrides for argument in _hydra_override(text, groups, where=recipe)]
    values = _compose(path, arguments)
    return validate({**values, "recipe": values.get("recipe") or path.stem})


def validate(values: Mapping[str, Any]) -> Config | FitConfig:
    """Check the tree, every part against the code it names, then what goes together. A run's recorded facts are not
    settings: left out. Raises `ConfigError`."""
    from trainer.combinations import check_objective

    settings = {key: value for key, value in values.items() if key not in RECORDED_FACTS}
    if "reward_model" in settings:
        fit = parse_options(FitConfig, settings)
        _check_parts(_fit_parts(fit))
        return fit
    config = parse_options(Config, settings)
    _check_parts(_parts(config))
    check_objective(config)
    return config


def to_yaml(config: Config | FitConfig) -> str:
    """The whole configuration, defaults included; `load_resolved` and `load_recipe` read it back to an equal one."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def load_resolved(path: str | Path) -> Config:
    """`load_any_resolved` of a run of reinforcement learning. Raises `ConfigError` for one of another form."""
    config = load_any_resolved(path)
    if isinstance(config, FitConfig):
        raise ConfigError("This run trained a reward model.", where=str(path), fix="name a run with rollouts")
    return config


def load_any_resolved(path: str | Path) -> Config | FitConfig:
    """The configuration of a run, from its ``resolved.yaml``. Raises `ConfigError`."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.", fix="name the resolved.yaml of a run") from error
    except yaml.YAMLError as error:
        raise _yaml_error(error, Path(path)) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no configuration.", where=str(path), fix="name the resolved.yaml of a run")
    return validate(values)


def recipe_index() -> list[tuple[str, str]]:
    """(name, one-line description) of every shipped recipe, by name."""
    described = ((p.stem, yaml.safe_load(p.read_text(encoding="utf-8"))) for p in sorted(RECIPES.glob("*.yaml")))
    return [(name, values["description"]) for name, values in described]


class _Dumper(yaml.SafeDumper):
    """Quotes texts such as '1e5' as well: text for PyYAML, but a number for Hydra."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+"), list("-+0123456789")
)


# Finding the recipe --------------------------------------------------------------------------------------------------


def _find(recipe: str) -> Path:
    shipped = RECIPES / f"{recipe}.yaml"
    if "/" not in recipe and shipped.is_file():
        return shipped
    path = Path(recipe).expanduser()
    looks_like_path = path.suffix in (".yaml", ".yml") or len(path.parts) > 1
    if not looks_like_path:
        names = [name for name, _ in recipe_index()]
        raise ConfigError(
            f"There is no recipe '{recipe}'.", fix=did_you_mean(recipe, names) + "; or the path of your own .yaml file"
        )
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(
            f"There is no recipe file {path}.", where=str(path.absolute().parent), fix=did_you_mean(path.name, near)
        )
    if path.suffix != ".yaml":
        raise ConfigError(f"{path} is not named as a recipe.", where=str(path), fix="let its name end in .yaml")
    return path.absolute()


def _groups(own_folder: Path) -> dict[str, set[str]]:
    """Group -> its choices, of the shipped recipes and of the folder that the recipe lies in."""
    groups: dict[str, set[str]] = {}
    for option in (*RECIPES.glob("*/*.yaml"), *own_folder.glob("*/*.yaml")):
        groups.setdefault(option.parent.name, set()).add(option.stem)
    shipped = {p.name for p in RECIPES.iterdir() if p.is_dir()}
    return {name: choices for name, choices in groups.items() if name in shipped or name not in Config.model_fields}


# Overrides -----------------------------------------------------------------------------------------------------------


def _hydra_override(text: str, groups: Mapping[str, set[str]], *, where: str) -> list[str]:
    """Our override in Hydra's grammar. A value is always forced in, so that an unknown key reaches our validator, which
    knows the nearest valid one. A whole part (``data.train={kind: ...}``) replaces the one before it: merged, it would
    inherit the options of another kind."""
    if text.startswith("~"):
        return [text]
    key, equals, value = text.partition("=")
    key = key.lstrip("+")
    if not equals or not _KEY.fullmatch(key):
        raise _bad_override(text, "it is not of the form key.path=value", where)
    if key.startswith("hydra."):
        raise _bad_override(text, "Hydra only composes here, so its own settings would do nothing", where)
    if key in groups:
        if value not in groups[key]:
            raise ConfigError(f"Unknown choice '{value}' for the group '{key}'.", where=f"override {text}",
                              fix=did_you_mean(value, groups[key]))  # fmt: skip
        return [f"{key}={value}"]
    key = _INDEX.sub(r".\1", key)
    forced = f"++{key}={value}"
    return [f"++{key}=null", forced] if _WHOLE_PART.match(value) else [forced]


def _bad_override(text: str, cause: str, where: str) -> ConfigError:
    return ConfigError(
        f"The override '{text}' cannot be read: {cause}.",
        where=where,
        fix="write key.path=value, key.path=null, key.path=[1,2], group=choice or ~key; quote texts with special "
        "characters twice, as in 'template.prompt=\"a=b, {question}\"'",
    )


# Composing -----------------------------------------------------------------------------------------------------------


def _compose(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Plain values, interpolations resolved, nothing missing."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        _check_order(path)
        for text, parsed in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
            if parsed.is_sweep_override():
                raise _bad_override(text.lstrip("+"), "it gives several values", path.name)
        search_path = ["hydra.searchpath=[pkg://recipes]"] if path.parent != RECIPES else []
        with _HYDRA_LOCK:
            GlobalHydra.instance().clear()
            with initialize_config_dir(config_dir=str(path.parent), version_base="1.3"):
                composed = compose(path.stem, [*search_path, *overrides])
        missing = sorted(str(key) for key in OmegaConf.missing_keys(composed))
        if missing:
            raise ConfigError(
                f"The recipe leaves open: {', '.join(missing)}.",
                where=path.name,
                fix="give each a value in a file or on the command line: " + " ".join(f"{key}=..." for key in missing),
            )
        values = OmegaConf.to_container(composed, resolve=True)
    except yaml.YAMLError as error:
        raise _yaml_error(error, path) from error
    except OverrideParseException as error:
        raise _bad_override(error.override.lstrip("+"), str(error).splitlines()[0].rstrip("."), path.name) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: a word as the index of a list
        raise _composition_error(error, path) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _check_order(path: Path) -> None:
    """Hydra lets the defaults win over the file that names them, unless told otherwise: surely not what was meant."""
    with path.open(encoding="utf-8") as file:
        values = yaml.safe_load(file)
    defaults = values.get("defaults") if isinstance(values, dict) else None
    if isinstance(defaults, list) and "_self_" not in defaults:
        raise ConfigError(
            "The defaults list does not say where the recipe itself stands.",
            where=f"{path}, defaults",
            why="what comes later in the list wins, and without `_self_` every entry would win over this file",
            fix="add `- _self_` after the entries that this file changes",
        )


def _yaml_error(error: yaml.YAMLError, path: Path) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    return ConfigError(
        f"The recipe is not valid YAML: {problem}{f' ({context})' if context else ''}.",
        where=where,
        fix="check indentation, quotes and colons near that line; quote a text that holds ': ' or starts with a "
        "special character; state every key once",
    )


def _composition_error(error: Exception, path: Path) -> ConfigError:
    """Hydra's and OmegaConf's messages name the key or the missing file and the choices; ours adds place and fix."""
    message = str(error).strip()
    cause = error.__cause__
    while cause is not None:
        if str(cause).strip() not in message:
            message += f"\n{str(cause).strip()}"
        cause = cause.__cause__
    if "nterpolation" in type(error).__name__ or "GrammarParse" in type(error).__name__:
        fix = "${a.b} must name a key of the recipe and ${oc.env:NAME} a variable that is set; for the text write \\${"
    elif "Could not override" in message:
        fix = "the recipe has no such group in its defaults list: add it there"
    elif "list index" in message or isinstance(error, ValueError):
        message = f"an override names a list item that does not exist ({message})"
        fix = "list items are numbered from 0, and an override can only change one that exists (sources.0.weight=2); "
        fix += "to replace the whole list write key=[...]"
    else:
        fix = "check the defaults list and the overrides; shipped recipes: "
        fix += ", ".join(name for name, _ in recipe_index()) + "; shipped groups: "
        fix += "; ".join(f"{n}: {', '.join(sorted(choices))}" for n, choices in sorted(_groups(RECIPES).items()))
    return ConfigError(f"The recipe cannot be composed: {message}", where=str(path), fix=fix)


# Parts ---------------------------------------------------------------------------------------------------------------


def _check_parts(parts: Iterable[tuple[str, Part, type[BaseModel]]]) -> None:
    """Every part names existing code and gives it options it accepts."""
    for key, part, options_model in parts:
        valid = {*options_model.model_fields, *type(part).model_fields}
        unknown = sorted(set(part.options) - set(options_model.model_fields))
        if unknown and options_model.model_config.get("extra") == "forbid":
            raise ConfigError(
                "The recipe cannot be run as written:\n"
                + "\n".join(
                    f"  - unknown key '{key}.{u}' of kind '{part.kind}': {did_you_mean(u, valid)}" for u in unknown
                ),
                where=key,
                why="a key that is silently ignored would train something else than what you asked for",
                fix="correct the keys above, or drop those of another kind: "
                + " ".join(f"'~{key}.{u}'" for u in unknown),
            )
        parse_options(options_model, part.options, key)


def _parts(config: Config) -> Iterator[tuple[str, Part, type[BaseModel]]]:
    """(recipe key, part, options model of its kind) of every part. Raises `ConfigError` for an unknown kind."""
    from data.sources import DATA_SOURCES
    from prm.signal import SOURCES
    from trainer.advantages.base import ADVANTAGES
    from trainer.losses.base import LOSSES
    from trainer.shaping.base import SHAPINGS
    from verifiers.verdict import VERIFIERS

    data = {"data.train": config.data.train}
    data |= {f"data.eval.{i}.source": e.source for i, e in enumerate(config.data.eval)}
    data |= {"warm_start.source": config.warm_start.source} if config.warm_start is not None else {}
    for key, part in data.items():
        yield key, part, _options_of(DATA_SOURCES.get(part.kind, key=f"{key}.kind"), part, key)
    yield (
        "verifier",
        config.verifier,
        _options_of(VERIFIERS.get(config.verifier.kind, key="verifier.kind"), config.verifier, "verifier"),
    )
    for i, source in enumerate(config.sources):
        key = f"sources.{i}"
        yield key, source, _options_of(SOURCES.get(source.kind, key=f"{key}.kind"), source, key)
    advantage, loss = config.objective.advantage, config.objective.loss
    for key, part, registry in (("objective.advantage", advantage, ADVANTAGES), ("objective.loss", loss, LOSSES)):
        yield key, part, _options_of(registry.get(part.kind, key=f"{key}.kind"), part, key)
    for i, shaping in enumerate(config.objective.shaping):
        key = f"objective.shaping.{i}"
        yield key, shaping, _options_of(SHAPINGS.get(shaping.kind, key=f"{key}.kind"), shaping, key)
    engine_options(config)


def engine_options(config: Config) -> BaseModel | None:
    """`rollout.engine_options` as the engine takes them; None for an engine that takes none."""
    from rollout.engine import ENGINES

    engine = ENGINES.get(config.rollout.engine, key="rollout.engine")
    options, values = getattr(engine, "Options", None), config.rollout.engine_options
    if options is not None:
        return parse_options(options, values, "rollout.engine_options")
    if values:
        raise ConfigError(f"The engine '{config.rollout.engine}' takes no options.", where="rollout.engine_options",
                          fix=f"leave out {', '.join(values)}, or set rollout.engine")  # fmt: skip
    return None


def _fit_parts(config: FitConfig) -> Iterator[tuple[str, Part, type[BaseModel]]]:
    """The same of the recipe of a reward model."""
    from data.labelled import LABELLED_DATA
    from prm.reward_model import REWARD_MODELS

    data = {"data.train": config.data.train}
    data |= {f"data.eval.{i}.source": e.source for i, e in enumerate(config.data.eval)}
    for key, part in data.items():
        yield key, part, _options_of(LABELLED_DATA.get(part.kind, key=f"{key}.kind"), part, key)
    kind = REWARD_MODELS.get(config.reward_model.kind, key="reward_model.kind")
    yield "reward_model", config.reward_model, _options_of(kind, config.reward_model, "reward_model")


def _options_of(entry: Any, part: Part, key: str) -> type[BaseModel]:
    options = getattr(entry, "Options", None) or getattr(entry, "options", None)
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise ConfigError(
            f"'{part.kind}' is not something that can stand here: it has no options model.",
            where=f"{key}.kind",
            fix="a class needs a nested pydantic model named Options; an advantage is an `AdvantageEstimator`, a loss "
            "a `PolicyLoss`, a shaping a `Shaping`",
        )
    return options
