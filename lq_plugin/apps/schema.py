"""Structured configs, generated from the signatures: Hydra knows every option, and no default is written twice.

A signature says which options there are, of which type, with which default. ``structured`` makes a dataclass of it that
Hydra can check an override against, so a wrong key or type fails when the configuration is composed.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

TARGETS = (
    "lightning.Trainer",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.callbacks.RichProgressBar",
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.loggers.MLFlowLogger",
    "lightning.pytorch.loggers.TensorBoardLogger",
    "lq_plugin.ArtifactExport",
    "lq_plugin.DynamicQuantization",
    "lq_plugin.Int8Evaluation",
    "lq_plugin.StaticQuantization",
    "lq_plugin.evaluation.latency.Latency",
    "lq_plugin.observers.HistogramObserver",
    "lq_plugin.observers.MinMaxObserver",
    "lq_plugin.observers.MovingAverageMinMaxObserver",
    "lq_plugin.observers.PercentileObserver",
    "lq_plugin.recipes.fashion_mobile.data.FashionData",
    "lq_plugin.recipes.fashion_mobile.model.MobileCnn",
    "lq_plugin.recipes.mnist_cnn.data.MnistData",
    "lq_plugin.recipes.mnist_cnn.model.MnistCnn",
    "lq_plugin.recipes.mnist_vit.model.MnistVit",
    "lq_plugin.recipes.mnist_vit_outliers.model.OutlierVit",
    "lq_plugin.recipes.temps_lstm.data.SeattleTemps",
    "lq_plugin.recipes.temps_lstm.model.TempsLstm",
    "lq_plugin.search.mixed_precision.Search",
    "lq_plugin.selection.Budget",
)
# What lq-train itself passes; an option of that name would be ignored.
GIVEN_BY_THE_APP = {"lightning.Trainer": ("callbacks", "logger")}

GROUP = "lq_plugin"

_PRIMITIVES = (bool, int, float, str)


def register(checked: bool = True) -> None:
    """Store the structured config of each target as ``lq_plugin/<name of the class>``, for a YAML to build on.

    It checks what is set on the ``_target_`` of that YAML: every option is known, with its type and its default.

    Args:
        checked: ``False`` for empty configs that check nothing, where no target is to be imported.
    """
    files = {f"{target.rpartition('.')[2]}.yaml": target for target in TARGETS}
    stored = Schemas(files) if checked else {file: _node(file, OmegaConf.create()) for file in files}
    ConfigStore.instance().repo[GROUP] = stored


class Schemas(dict[str, Any]):
    """The targets by the file name of their schema; each becomes its structured config when it is first composed.

    Making one imports its target, and an app that composes one callback should not import all models and data of the
    recipes. ``ConfigStore.store`` has no such delay, so this stands for a group in its ``repo``, which is a dict of
    dicts in Hydra 1.1 to 1.4.
    """

    def __getitem__(self, file: str) -> Any:
        found = super().__getitem__(file)
        if isinstance(found, str):
            found = self[file] = _node(file, OmegaConf.structured(structured(found)))
        return found


def _node(file: str, config: DictConfig) -> ConfigNode:
    return ConfigNode(name=file, node=config, group=GROUP, package=None, provider=GROUP)


@functools.cache
def structured(target: str) -> type[Any]:
    """Make the structured config of a callable.

    Args:
        target: import path of a class or function with annotated arguments.

    Returns:
        A dataclass with ``_target_`` and one field for each argument. Types that OmegaConf cannot hold, such as those
        of objects made by a nested ``_target_``, become ``Any``; a nested dataclass becomes a nested config.

    Example:
        >>> structured("lq_plugin.observers.PercentileObserver")()
        PercentileObserver(_target_='lq_plugin.observers.PercentileObserver', _convert_='all', percentile=99.99)
    """
    made: Callable[..., Any] = pkgutil.resolve_name(target)
    hints = typing.get_type_hints(made.__init__ if inspect.isclass(made) else made)
    fields: list[tuple[str, Any, Any]] = [("_target_", str, target), ("_convert_", str, "all")]
    for name, parameter in inspect.signature(made).parameters.items():
        named = parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if named and name not in GIVEN_BY_THE_APP.get(target, ()):
            fields.append((name, *_field(hints.get(name, Any), parameter.default)))
    return dataclasses.make_dataclass(target.rpartition(".")[2], fields)


def _field(hint: Any, default: Any) -> tuple[Any, Any]:
    if default is inspect.Parameter.empty:
        return _omegaconf_type(hint), MISSING
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        nested = structured(f"{type(default).__module__}.{type(default).__qualname__}")
        values = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
        nullable = types.NoneType in typing.get_args(hint)
        return nested | None if nullable else nested, dataclasses.field(default_factory=lambda: nested(**values))
    if isinstance(default, (tuple, list)):
        return _omegaconf_type(hint), dataclasses.field(default_factory=lambda: list(default))
    return _omegaconf_type(hint), dataclasses.field(default=default)


def _omegaconf_type(hint: Any) -> Any:
    """The nearest type that OmegaConf checks: primitives, their unions, and lists and string-keyed dicts of them."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PRIMITIVES:
        return hint
    if origin in (typing.Union, types.UnionType):
        return _union([member for member in arguments if member is not types.NoneType], types.NoneType in arguments)
    if origin in (list, Sequence) or (origin is tuple and arguments[1:] == (...,)):
        return list[_omegaconf_type(arguments[0])]  # type: ignore[misc]
    if origin in (dict, Mapping) and arguments[0] is str:
        return dict[str, _omegaconf_type(arguments[1])]  # type: ignore[misc]
    return Any


def _union(members: list[Any], optional: bool) -> Any:
    mapped = [_omegaconf_type(member) for member in members]
    if len(mapped) > 1 and any(member not in _PRIMITIVES for member in mapped):
        return Any
    if optional and typing.get_origin(mapped[0]) is dict:
        return Any  # OmegaConf 2.3 cannot set a dict where a typed one was None
    return functools.reduce(operator.or_, [*mapped, None] if optional else mapped)
