"""Two processes give what one gives, whatever share of the data each of them has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Ended, two_processes
from shares import OBSERVERS, SHARES, Mean, Sampled, batches, with_everything
from tiny import trainer

import lq_plugin
from lq_plugin.callbacks.untrained import without_training
from lq_plugin.checkpoints import read_file
from lq_plugin.store import Store

SCRIPT = """
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from shares import OBSERVERS, SHARES, Mean, Sampled, Shares, fit_of, with_everything
from lq_plugin import StaticQuantization

for name, share in SHARES.items():
    used = [StaticQuantization(observer, observer=observer, algorithms=()) for observer in OBSERVERS[name]]
    model = Mean()
    fit_of(Path(name), model, Shares(share), *used, max_epochs=2 if name == "sizes" else 1)
    torch.save(
        {
            "weights": model.state_dict(),
            "callbacks": [callback.state_dict() for callback in used],
            "extra": [callback.candidate and callback.candidate.calibration.provenance.extra_pass for callback in used],
            "errors": [callback.error for callback in used],
        },
        f"{name}{rank}.pt",
    )
kept = ModelCheckpoint(".", "kept")
fit_of(Path("two"), Mean(), Sampled(), *with_everything(), kept, enable_checkpointing=True)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Ended]]:
    folder = tmp_path_factory.mktemp("two")
    ended = two_processes(SCRIPT, folder)
    assert [each.code for each in ended] == [0, 0], ended
    return folder, ended


@pytest.mark.parametrize("name", SHARES)
def test_statistics_of_two_processes_are_those_of_one_whatever_each_has(name: str, ended: Any) -> None:
    """Order-free statistics are the same to the bit; a moving average is the mean of what the processes have."""
    folder, _ = ended
    found = torch.load(folder / f"{name}0.pt")
    assert found["errors"] == [None] * len(OBSERVERS[name])
    assert found["extra"] == [False] * len(OBSERVERS[name])
    model = Mean()
    model.load_state_dict(found["weights"])
    model.eval()
    shares = SHARES[name]
    for observer, state in zip(OBSERVERS[name], found["callbacks"], strict=True):
        got = state["calibration"]
        assert got["provenance"]["samples"] == sum(sizes for sizes, _ in shares[0] + shares[1])
        parts = [batches(shares, rank) for rank in range(2)]
        given = [parts[0] + parts[1]] if observer != "moving_average" else [part for part in parts if part]
        one = [lq_plugin.calibrate(model, part, lq_plugin.Scheme(observer=observer)).statistics for part in given]
        assert got["statistics"].keys() == one[0].keys()
        for value, statistic in got["statistics"].items():
            for key, tensor in statistic.items():
                expected = torch.stack([each[value][key] for each in one])
                assert torch.equal(tensor, expected.float().mean(0) if len(one) > 1 else expected[0]), (observer, value)


def test_one_process_learns_from_the_same_samples_and_makes_the_same_artifacts(ended: Any, tmp_path: Path) -> None:
    folder, _ = ended
    alone = trainer(tmp_path, *with_everything())
    without_training(alone, Mean(), Sampled(), lambda _: read_file(folder / "kept.ckpt"), Store(tmp_path / "store"))
    one, two = (json.loads((each / "quantized" / "manifest.json").read_text()) for each in (tmp_path, folder / "two"))
    assert {step["outcome"] for step in two["steps"]} & {"kept", "refused"}
    assert one["calibration"]["made"]["samples"] == two["calibration"]["made"]["samples"] == 96
    assert one["artifacts"] == two["artifacts"]
    assert one["fp32"] == two["fp32"]
    assert _learnt(one) == _learnt(two)


def _learnt(manifest: Any) -> list[Any]:
    """What algorithms did, without the time and the memory that it took."""
    return [step | {"seconds": 0, "peak_memory_bytes": 0} for step in manifest["steps"]]
