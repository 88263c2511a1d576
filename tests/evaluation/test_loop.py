"""The module's own loop runs with another forward in the target's place, and leaves everything as it was."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelSummary
from tiny import CLASSES, Images, Tiny, images, network, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lq_plugin.errors import ConfigError
from lq_plugin.evaluation.loop import BatchEnd, Data, run, splits_of
from lq_plugin.graph.torch_patches import process_group_hidden

LOADER = Images().val_dataloader()
VALIDATE = Data(loaders={"validate": LOADER})


def accuracy(model: nn.Module, loader: Any) -> float:
    """Reference without Lightning and torchmetrics."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(x).argmax(1) == y for x, y in loader]).float().mean().item()


def first_class(original: Any, x: Tensor) -> Tensor:
    return torch.eye(CLASSES)[[0] * len(x)]


FIRST_CLASS = torch.cat([y == 0 for _, y in LOADER]).float().mean().item()


def test_it_returns_what_the_module_logs() -> None:
    model = Tiny()
    logged = run(model, Data(Images()), "validate")
    assert logged.keys() == {"val/loss", "val/acc"}
    assert logged["val/acc"] == pytest.approx(accuracy(model, LOADER))
    assert run(model, Data(Images()), "test").keys() == {"test/loss", "test/acc"}


@pytest.mark.parametrize("target", [None, "net"])
def test_another_forward_takes_the_place_of_the_target(target: str | None) -> None:
    logged = run(Tiny(), VALIDATE, "validate", target=target, forward=first_class)
    assert logged["val/acc"] == pytest.approx(FIRST_CLASS)


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"target: 'nte' is unknown\. Did you mean 'net'"):
        run(Tiny(), VALIDATE, "validate", target="nte", forward=first_class)


class Recording(Images):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def prepare_data(self) -> None:
        self.asked.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.asked.append("setup " + stage)

    def teardown(self, stage: str) -> None:
        self.asked.append("teardown " + stage)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.asked.append("transfer")
        return batch

    def val_dataloader(self) -> Any:
        self.asked.append("val_dataloader")
        return super().val_dataloader()


class Building(Tiny):
    """Builds its layers anew whenever it is asked to."""

    def configure_model(self) -> None:
        self.net = network()

    setup = teardown = prepare_data = lambda self, stage="": self.configure_model()  # type: ignore[assignment]

    def configure_callbacks(self) -> Any:
        return [ModelSummary()]


def test_a_loader_that_exists_is_taken_and_nothing_is_set_up_again() -> None:
    data, model = Recording(), Building()
    logged = run(model, Data(data, VALIDATE.loaders), "validate")
    assert data.asked == ["transfer"] * 2
    assert logged["val/acc"] == pytest.approx(accuracy(model, LOADER))


def test_a_split_whose_loader_does_not_exist_yet_is_set_up_but_not_prepared() -> None:
    data, model = Recording(), Building()
    logged = run(model, Data(data, {}), "validate")
    assert data.asked == ["setup validate", "val_dataloader", "transfer", "transfer"]
    assert logged["val/acc"] == pytest.approx(accuracy(model, LOADER))


class Failing(Tiny):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.rand(3), random.random(), np.random.rand()
        raise ZeroDivisionError("in validation_step")


class Drawing(Tiny):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.rand(3), random.random(), np.random.rand()
        super().validation_step(batch, batch_idx)


def random_state() -> list[str]:
    return [str(torch.get_rng_state().tolist()), str(random.getstate()), str(np.random.get_state())]


@pytest.mark.parametrize("kind", [Drawing, Failing])
def test_everything_is_left_as_it_was_also_where_a_step_raises(kind: type[Tiny], tmp_path: Path) -> None:
    model, data = kind(), Images()
    model.net[0].eval()
    owner = model.trainer = data.trainer = trainer(tmp_path)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: part.training for name, part in model.named_modules()}
    before, level = random_state(), logging.getLogger("lightning.pytorch").level
    if kind is Failing:
        with pytest.raises(ZeroDivisionError, match="in validation_step"):
            run(model, Data(data), "validate", forward=first_class)
    else:
        run(model, Data(data), "validate", forward=first_class)
    assert random_state() == before
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert (model.trainer, data.trainer) == (owner, owner)
    assert not {"forward", "setup", "teardown", "configure_model"} & {*model.__dict__, *data.__dict__}
    assert model.accuracy.update_count == 0
    assert logging.getLogger("lightning.pytorch").level == level
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limits", "batches"), [({"validate": 1}, 1), ({"test": 1}, 2), (None, 2)])
def test_the_limit_of_the_split_holds_and_every_batch_is_told(limits: Any, batches: int) -> None:
    told: list[Any] = []
    run(Tiny(), Data(None, VALIDATE.loaders, limits), "validate", callbacks=[BatchEnd(told.append)])
    assert [len(x) for x, _ in told] == [8] * batches


class OnlyValidation(Tiny):
    test_step = None


class Own(Tiny):
    def val_dataloader(self) -> Any:
        return DataLoader(images(8))


class OnlyTest(Images):
    val_dataloader = None


@pytest.mark.parametrize(
    ("model", "data", "splits"),
    [
        (Tiny, Data(Images()), ("validate", "test")),
        (Tiny, Data(), ()),
        (Tiny, Data(loaders={"test": []}), ("test",)),
        (Tiny, Data(OnlyTest()), ("test",)),
        (Tiny, Data(OnlyTest(), {"validate": []}), ("validate", "test")),
        (OnlyValidation, Data(Images()), ("validate",)),
        (Own, Data(), ("validate",)),
        (Own, Data(OnlyTest()), ("validate", "test")),
    ],
)
def test_splits_are_those_with_a_step_and_a_loader(model: type[Tiny], data: Data, splits: tuple[str, ...]) -> None:
    assert splits_of(model(), data) == splits


def test_a_process_that_evaluates_alone_sees_no_process_group(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        group = torch.distributed.group.WORLD
        with pytest.raises(ZeroDivisionError), process_group_hidden():  # noqa: PT012
            assert not torch.distributed.is_initialized()
            raise ZeroDivisionError
        assert torch.distributed.group.WORLD is group
    finally:
        torch.distributed.destroy_process_group()
    with process_group_hidden():
        assert not torch.distributed.is_initialized()
