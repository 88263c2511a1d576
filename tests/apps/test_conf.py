"""Every configuration file composes, and makes what it names."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import lq_plugin.conf
from lq_plugin import Int8Evaluation, StaticQuantization
from lq_plugin.algorithms import TABLE
from lq_plugin.apps import command, resolvers
from lq_plugin.apps.train import check
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.errors import ConfigError
from lq_plugin.observers import OBSERVERS
from lq_plugin.scheme import ALGORITHMS

ROOT = Path(str(resources.files(lq_plugin.conf)))
OPTIONS = sorted((file.parent.name, file.stem) for file in ROOT.glob("*/*.yaml"))
GROUPS = {
    *("model", "data", "trainer", "logger", "callbacks", "recipe", "paths"),
    *("quantization", "observer", "algorithms", "export", "evaluation", "budget", "search", "sweep"),
}
# What an app that composes quantization=static alone does not import.
UNUSED = ("lq_plugin.recipes", "lq_plugin.callbacks.evaluation", "lq_plugin.callbacks.export", "lq_plugin.apps.train")
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}  # of the extra "loggers"
NEEDS_A_GPU = ("gpu", "fsdp")
SCHEMA = re.compile(r"^  - /lq_plugin/(\w+)@_here_$", re.MULTILINE)


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_module("lq_plugin.conf", version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("train", list(overrides))


def sections(config: DictConfig) -> dict[str, Any]:
    groups = {f"{group}.{name}": node for group in ("callbacks", "logger") for name, node in config[group].items()}
    return groups | {name: config[name] for name in ("data", "model", "trainer")}


def test_the_groups_are_those_that_were_promised() -> None:
    assert {group for group, _ in OPTIONS} == GROUPS


@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if pair[0] != "sweep"])
def test_every_option_composes_and_instantiates(
    group: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:9")  # a server's address makes no database
    if group == "logger" and option in PACKAGES:
        pytest.importorskip(PACKAGES[option])
    needed = {"data": "mnist", "model": "mnist_cnn"} | {group: option}
    if group in ("observer", "algorithms"):
        needed["quantization"] = "dynamic" if option == "rounding" else "static"
    if group == "recipe":
        needed = {"recipe": option}
    config = composed(*(f"{name}={choice}" for name, choice in needed.items()))
    check(config)
    for section, node in sections(config).items():
        if section == "trainer" and option in NEEDS_A_GPU and not torch.cuda.is_available():
            with pytest.raises(InstantiationException, match="No supported gpu backend found"):
                instantiate(node)
        elif node:
            assert type(instantiate(node)).__name__ == node._target_.rpartition(".")[2], section


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "sweep"])
def test_every_sweep_composes_and_instantiates(option: str) -> None:
    config = compose("train", ["recipe=mnist_cnn", f"sweep={option}"], return_hydra_config=True)
    (chosen,) = (node for node in (config.hydra.launcher, config.hydra.sweeper) if "basic" not in node._target_.lower())
    assert type(instantiate(chosen)).__name__ == chosen._target_.rpartition(".")[2]


@pytest.mark.parametrize("file", [file for file in ROOT.glob("*/*.yaml") if SCHEMA.search(file.read_text())], ids=str)
def test_a_file_shows_its_target_and_repeats_no_default(file: Path) -> None:
    (schema,) = SCHEMA.findall(file.read_text())
    defaults = ConfigStore.instance().load(f"lq_plugin/{schema}.yaml").node
    own = OmegaConf.load(file)
    assert own._target_ == defaults._target_
    options = own.keys() - {"defaults", "_target_"}
    assert [key for key in options if own._get_node(key) == defaults._get_node(key)] == []


def test_help_names_every_option() -> None:
    rows = [line.replace("[", "").replace("]", "").split() for line in resolvers.groups().splitlines()]
    named = {words[0]: words[1:] for words in rows}
    assert named.keys() == GROUPS
    assert [(group, option) for group, option in OPTIONS if option not in named[group]] == []
    assert "  quantization  [static] both dynamic none" in resolvers.groups()
    assert "INT8 after fit" in resolvers.groups()


def test_every_observer_and_every_format_has_its_option_and_is_installed_by_name() -> None:
    chosen = {group: {option for found, option in OPTIONS if found == group} for group in ("observer", "export")}
    assert chosen["observer"] == set(OBSERVERS)
    assert chosen["export"] - {"default", "none"} == {name for name, made in FORMATS.items() if made.export}
    assert {observer.__name__ for observer in OBSERVERS.values()} <= set(lq_plugin.__all__)
    extras = set(importlib.metadata.metadata("lq_plugin").get_all("Provides-Extra"))
    assert {made.extra for made in FORMATS.values() if made.extra is not None} <= extras


def test_every_algorithm_has_its_option() -> None:
    options = {option for group, option in OPTIONS if group == "algorithms"} - {"auto", "none"}
    assert options == set(ALGORITHMS) == set(TABLE)
    chosen = composed("recipe=mnist_cnn", "algorithms=sequential")
    assert instantiate(chosen.callbacks.static).scheme.algorithms == ("sequential",)
    chosen = composed("recipe=temps_lstm", "algorithms=rounding")
    assert instantiate(chosen.callbacks.dynamic).scheme.algorithms == ("rounding",)


def test_an_observer_is_chosen_by_group_or_by_name() -> None:
    by_group = composed("recipe=mnist_cnn", "observer=percentile", "observer.percentile=99.5")
    by_name = composed("recipe=mnist_cnn", "callbacks.static.observer=minmax")
    static = instantiate(by_group.callbacks.static)
    assert isinstance(static, StaticQuantization)
    assert str(static.scheme.observer) == "PercentileObserver(percentile=99.5)"
    assert str(instantiate(by_name.callbacks.static).scheme.observer) == "MinMaxObserver()"


@pytest.mark.parametrize(
    ("option", "static", "dynamic"),
    [
        ("none", (), ()),
        ("auto", "auto", "auto"),
        ("smoothing", ("smoothing",), "auto"),
        ("rounding", "auto", ("rounding",)),
    ],
)
def test_algorithms_reach_the_methods_that_have_them(option: str, static: Any, dynamic: Any) -> None:
    byhand = "+callbacks.byhand={_target_: lq_plugin.DynamicQuantization, name: byhand}"
    config = composed("recipe=mnist_cnn", "quantization=both", f"algorithms={option}", byhand)
    check(config)
    schemes = {name: instantiate(config.callbacks[name]).scheme for name in ("static", "dynamic", "byhand")}
    assert {name: scheme.algorithms for name, scheme in schemes.items()} == {
        "static": static,
        "dynamic": dynamic,
        "byhand": dynamic,
    }


def test_observer_and_algorithms_reach_every_static_callback() -> None:
    byhand = "+callbacks.coarse={_target_: lq_plugin.StaticQuantization, name: coarse}"
    own = "+callbacks.own={_target_: lq_plugin.StaticQuantization, name: own, observer: histogram}"
    config = composed(
        *("recipe=mnist_cnn", "+quantization@callbacks.second=static", "callbacks.second.name=second", byhand, own),
        *("observer=minmax", "algorithms=smoothing", "+callbacks.other={_target_: lq_plugin.DynamicQuantization}"),
    )
    check(config)
    schemes = {name: instantiate(config.callbacks[name]).scheme for name in ("static", "second", "coarse", "own")}
    assert {name: scheme.observer.name for name, scheme in schemes.items()} == {
        "static": "minmax",
        "second": "minmax",
        "coarse": "minmax",
        "own": "histogram",
    }
    assert {scheme.algorithms for scheme in schemes.values()} == {("smoothing",)}
    assert type(instantiate(config.callbacks.other)).__name__ == "DynamicQuantization"


def test_what_is_not_chosen_is_the_callbacks_default() -> None:
    static = instantiate(composed("recipe=mnist_cnn").callbacks.static)
    assert static.scheme == StaticQuantization().scheme


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data=mnist_cnn", "data/mnist_cnn: this option was renamed. Write data=mnist."),
        (
            "callbacks.static.observer.percentile=99",
            "callbacks.static.observer.percentile: this option was moved. Write observer.percentile=VALUE.",
        ),
        ("logger.save_dir=mine", "logger.save_dir: this option was moved. Write logger.csv.save_dir=VALUE."),
    ],
)
def test_an_old_name_is_an_error_with_the_new_one(override: str, said: str) -> None:
    with pytest.raises(HydraException) as caught:
        composed("recipe=mnist_cnn", "observer=percentile", override)
    assert command.one_line(caught.value) == said


def test_a_budget_keeps_what_it_does_not_set() -> None:
    config = composed("recipe=mnist_cnn", "budget=absolute", "callbacks.evaluation.budget.max_drop=0.002")
    evaluation = instantiate(config.callbacks.evaluation)
    assert isinstance(evaluation, Int8Evaluation)
    assert (evaluation.budget.relative, evaluation.budget.max_drop) == (False, 0.002)


@pytest.mark.parametrize(
    "override",
    [
        "callbacks.static.smaples=3",
        "callbacks.static.samples=many",
        "callbacks.static.skip=head",
        "callbacks.evaluation.budget.max_los=0.1",
        "callbacks.evaluation.latency.rounds=few",
        "trainer.max_epocs=1",
        "data.batch_size=big",
        "observer=minmx",
    ],
)
def test_a_wrong_key_or_type_does_not_compose(override: str) -> None:
    with pytest.raises(HydraException, match=override.partition("=")[0].rpartition(".")[2]):
        composed("recipe=mnist_cnn", override)


@pytest.mark.parametrize(
    ("section", "override", "match"),
    [
        ("static", "callbacks.static.observer=minmx", "Did you mean 'minmax'"),
        ("static", "callbacks.static.activation_dtype=int4", "activation_dtype"),
        ("static", "callbacks.static.samples=0", "samples"),
        ("export", "callbacks.export.formats=[onx]", "Did you mean 'onnx'"),
        ("export", "callbacks.export.placement=atuo", "Did you mean 'auto'"),
        ("evaluation", "callbacks.evaluation.splits=[train]", "splits"),
        ("evaluation", "callbacks.evaluation.budget.max_drop=-1", "max_drop"),
        ("evaluation", "callbacks.evaluation.latency.rounds=0", "rounds"),
    ],
)
def test_a_wrong_value_does_not_instantiate(section: str, override: str, match: str) -> None:
    config = composed("recipe=mnist_cnn", override)
    with pytest.raises(InstantiationException, match=match):
        instantiate(config.callbacks[section])


def test_a_configuration_resolves_outside_of_an_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resolved: Any = OmegaConf.to_container(composed("recipe=mnist_cnn"), resolve=True)
    folders = (resolved["callbacks"]["export"]["output_dir"], resolved["trainer"]["default_root_dir"])
    assert folders == (str(tmp_path), str(tmp_path))
    elsewhere = composed("recipe=mnist_cnn", "paths.output_dir=mine")
    assert (elsewhere.callbacks.export.output_dir, elsewhere.logger.csv.save_dir) == ("mine", "mine")


def test_what_has_to_be_chosen_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"data\._target_: not given.*recipe=NAME"):
        check(composed())


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ("+callbacks.static.samples=8", r"callbacks\.static: .*quantization=static"),
        ("observer=minmax", r"observer: chosen, .*Add quantization=static"),
        ("algorithms=none", r"no static or dynamic quantization .*Add quantization=static or quantization=dynamic"),
        ("algorithms=rounding", r"algorithms: chosen, .*Add quantization=dynamic, or leave algorithms= out"),
    ],
)
def test_options_without_their_callback_are_refused(option: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        check(composed("recipe=mnist_cnn", "quantization=none", option))


def test_the_groups_serve_somebody_elses_app(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text(
        "defaults:\n  - quantization: static\n  - _self_\n"
        "hydra:\n  searchpath: [pkg://lq_plugin.conf]\n"
        "callbacks:\n  static:\n    samples: 7\n"
    )
    (tmp_path / "app.py").write_text(
        "import sys, hydra\n"
        "@hydra.main(version_base='1.3', config_path='conf', config_name='mine')\n"
        "def app(config):\n"
        "    made = hydra.utils.instantiate(config.callbacks.static)\n"
        "    print(type(made).__name__, made.samples, *(name for name in UNUSED if name in sys.modules))\n"
        f"UNUSED = {UNUSED}\n"
        "app()\n"
    )
    # A process that has not imported lq_plugin before: Hydra does, because of the search path.
    command = [sys.executable, "app.py", "callbacks.static.observer=minmax"]
    good = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (good.stdout, good.stderr) == ("StaticQuantization 7\n", "")
    wrong = commands.run("app.py", "callbacks.static.smaples=3", cwd=tmp_path)
    assert wrong.returncode == 1
    assert "Key 'smaples' not in 'StaticQuantization'" in wrong.stderr
