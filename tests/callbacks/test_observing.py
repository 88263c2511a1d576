"""What the observers of StaticQuantization see, and that they leave again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny import Images, Tiny, fit
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import lq_plugin
from lq_plugin import MinMaxObserver, StaticQuantization

WIDTH = 4


@dataclass(frozen=True)
class Spy(MinMaxObserver):
    """A minmax observer that notes which batches pass by: each batch holds nothing but its own number."""

    seen: ClassVar[list[tuple[int, int]]] = []

    def update(self, statistic: dict[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        if values.shape[-1] == WIDTH:
            self.seen.append((int(values.flatten()[0]), len(values)))
        return super().update(statistic, values)


@pytest.fixture(autouse=True)
def seen() -> list[tuple[int, int]]:
    """(number, size) of every batch that an observer has seen."""
    Spy.seen.clear()
    return Spy.seen


class Numbered(Dataset[Tensor]):
    def __init__(self, samples: int, batch_size: int) -> None:
        self.samples, self.batch_size = samples, batch_size

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Tensor:
        if index >= self.samples:
            raise IndexError
        return torch.full((WIDTH,), float(index // self.batch_size))


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter([torch.full((WIDTH,), float(number)) for number in range(6)])


class Numbers(L.LightningDataModule):
    def __init__(self, samples: int = 40, batch_size: int = 8) -> None:
        super().__init__()
        self.samples, self.batch_size = samples, batch_size

    def train_dataloader(self) -> Any:
        return DataLoader(Numbered(8, 8), 8)

    def val_dataloader(self) -> Any:
        return DataLoader(Numbered(self.samples, self.batch_size), self.batch_size)


class Line(L.LightningModule):
    """One linear layer; validation calls it the way that ``call`` says."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor] = lambda module, x: module(x)) -> None:
        super().__init__()
        self.net = nn.Linear(WIDTH, 2)
        self.call = call
        self.fails = False

    def forward(self, x: Tensor, shift: float = 0.0) -> Tensor:
        return self.net(x) + shift

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/mean", self.call(self, batch).mean())
        if self.fails and not self.trainer.sanity_checking:
            raise ZeroDivisionError("in validation_step")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Watch(Callback):
    """Notes, by the name of the hook, how much was seen and whether the forward is shadowed."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, int, bool]] = []

    def note(self, hook: str, module: Any) -> None:
        self.notes.append((hook, len(Spy.seen), "forward" in module.__dict__))

    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        self.note("sanity", pl_module)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.note("validation", pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.note("training", pl_module)


def observe(folder: Path, data: Any = None, model: Any = None, epochs: int = 1, **options: Any) -> StaticQuantization:
    callback = StaticQuantization(observer=Spy(), algorithms=[], **options)
    fit(folder, model or Line(), callback, data=data or Numbers(), max_epochs=epochs, enable_checkpointing=False)
    assert callback.error is None
    return callback


def test_the_sanity_check_is_not_observed(tmp_path: Path) -> None:
    watch = Watch()
    fit(
        tmp_path,
        Line(),
        StaticQuantization(observer=Spy(), algorithms=[]),
        watch,
        data=Numbers(),
        enable_checkpointing=False,
    )
    assert [count for hook, count, _ in watch.notes if hook == "sanity"] == [0]
    assert len(Spy.seen) == 5


def test_the_forward_is_shadowed_during_validation_only(tmp_path: Path) -> None:
    watch, model = Watch(), Line()
    fit(tmp_path, model, watch, StaticQuantization(), data=Numbers(), max_epochs=2, enable_checkpointing=False)
    assert {(hook, shadowed) for hook, _, shadowed in watch.notes} == {
        ("validation", True),
        ("sanity", False),
        ("training", False),
    }
    assert "forward" not in model.__dict__


def test_samples_are_rounded_up_to_whole_batches(tmp_path: Path, seen: list[tuple[int, int]]) -> None:
    callback = observe(tmp_path, samples=17)
    assert callback.calibration is not None
    assert (callback.calibration.provenance.samples, callback.calibration.provenance.batches) == (24, 3)
    assert sum(size for _, size in seen) == 24


def test_batches_of_one_count_as_one_sample(tmp_path: Path, seen: list[tuple[int, int]]) -> None:
    observe(tmp_path, Numbers(samples=6, batch_size=1), samples=4)
    assert sum(size for _, size in seen) == 4


def test_every_pass_is_observed_afresh(tmp_path: Path, seen: list[tuple[int, int]]) -> None:
    callback = observe(tmp_path, samples=16, epochs=3)
    assert callback.calibration is not None
    assert callback.calibration.provenance.samples == 16
    assert callback.calibration.provenance.global_step == 3
    assert len(seen) == 6
    last = sorted(float(number) for number, _ in seen[-2:])
    assert last in [[s["low"].item(), s["high"].item()] for s in callback.calibration.statistics.values()]


def test_the_seed_chooses_the_batches(tmp_path: Path, seen: list[tuple[int, int]]) -> None:
    chosen = []
    for index, seed in enumerate((0, 0, 1, 2)):
        seen.clear()
        torch.manual_seed(index)
        observe(tmp_path, samples=16, seed=seed)
        chosen.append(tuple(number for number, _ in seen))
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1
    assert any(numbers != (0, 1) for numbers in chosen)


def test_a_stream_of_unknown_length_is_observed_from_its_start(tmp_path: Path, seen: list[tuple[int, int]]) -> None:
    class Streams(Numbers):
        def val_dataloader(self) -> Any:
            return DataLoader(Stream(), 2)

    observe(tmp_path, Streams(), samples=4)
    assert sum(size for _, size in seen) == 4


@pytest.mark.parametrize(
    "call",
    [
        lambda module, x: module(x),
        lambda module, x: module.forward(x),
        lambda module, x: module(x=x),
        lambda module, x: module.forward(x=x, shift=0.5),
        lambda module, x: module(x, 0.5),
    ],
    ids=["called", "forward", "keyword", "forward with keywords", "positions"],
)
def test_every_way_of_calling_the_target_is_observed(
    call: Callable[[Any, Tensor], Tensor], tmp_path: Path, seen: list[tuple[int, int]]
) -> None:
    callback = observe(tmp_path, model=Line(call))
    assert callback.candidate is not None
    assert len(seen) == 5


def test_a_submodule_is_observed_where_validation_goes_around_the_forward(
    tmp_path: Path, seen: list[tuple[int, int]]
) -> None:
    callback = observe(tmp_path, model=Line(lambda module, x: module.net(x)), target="net")
    assert callback.candidate is not None
    assert len(seen) == 5


def test_the_forward_is_given_back_after_an_exception(tmp_path: Path) -> None:
    model, callback = Line(), StaticQuantization()
    model.fails = True
    with pytest.raises(ZeroDivisionError, match="in validation_step"):
        fit(tmp_path, model, callback, data=Numbers(), enable_checkpointing=False)
    assert "forward" not in model.__dict__
    model.fails = False
    model.train()
    fit(tmp_path, model, callback, data=Numbers(), enable_checkpointing=False)
    assert callback.candidate is not None


def test_after_a_failure_nothing_is_observed_any_more(tmp_path: Path) -> None:
    tries: list[Tensor] = []

    class Broken(MinMaxObserver):
        def update(self, statistic: dict[str, Tensor], values: Tensor) -> dict[str, Tensor]:
            tries.append(values)
            raise ZeroDivisionError("in the observer")

    callback, watch = StaticQuantization(observer=Broken()), Watch()
    fit(tmp_path, Line(), callback, watch, data=Numbers(), max_epochs=2, enable_checkpointing=False)
    assert len(tries) == 1
    assert sum(shadowed for _, _, shadowed in watch.notes) == 7  # two batches of the sanity check, five of one pass
    assert callback.error == "CalibrationError: calibration: in the observer"
    assert callback.calibration is None


def test_a_forward_that_the_user_put_on_the_instance_stays(tmp_path: Path) -> None:
    model = Line()
    own = model.forward
    model.forward = own
    fit(tmp_path, model, StaticQuantization(), data=Numbers(), enable_checkpointing=False)
    assert model.__dict__["forward"] is own


def test_several_observers_leave_in_any_order(tmp_path: Path, seen: list[tuple[int, int]]) -> None:
    model = Line()
    own = model.forward
    model.forward = own
    both = [
        StaticQuantization("a", observer=Spy(), algorithms=[]),
        StaticQuantization("b", observer=Spy(), algorithms=[]),
    ]
    fit(tmp_path, model, *both, data=Numbers(), enable_checkpointing=False)
    assert model.__dict__["forward"] is own
    assert len(seen) == 2 * 5
    assert [callback.candidate is not None for callback in both] == [True, True]


def test_a_later_validation_of_another_model_is_not_mistaken_for_the_first(tmp_path: Path) -> None:
    callback = StaticQuantization(observer="minmax")
    made = fit(tmp_path, Tiny(), callback, data=Images(), enable_checkpointing=False)
    other = Tiny().eval()
    made.validate(other, datamodule=Images(), verbose=False)
    assert callback.calibration is not None
    expected = lq_plugin.calibrate(other, [x for x, _ in Images().val_dataloader()], callback.scheme)
    assert callback.calibration.statistics == expected.statistics


def test_what_validation_step_sees_is_the_models_own_output(tmp_path: Path) -> None:
    outputs: list[Tensor] = []

    class Keeping(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            if not self.training:
                outputs.append(output)
            return output

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            outputs.clear()
            assert self(batch[0]) is outputs[0]

    fit(tmp_path, Keeping(), StaticQuantization(), data=Images(), enable_checkpointing=False)
    assert outputs
