"""The README's Python runs as it stands."""

from __future__ import annotations

import functools
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from tiny import Images, Tiny
from torch import nn

from lq_plugin import Int8Evaluation

README = Path(__file__).parents[1] / "README.md"


class Model(Tiny):
    """Its network has the names that the README speaks of."""

    def __init__(self) -> None:
        super().__init__()
        conv, norm, relu, dropout, flat, linear = self.net
        self.net = nn.Sequential(
            OrderedDict(conv=conv, norm=norm, relu=relu, dropout=dropout, flat=flat, head=linear)
        ).append(Doubled())


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:`Trainer.fit` stopped")
def test_every_block_of_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    untimed = functools.partialmethod(Int8Evaluation.__init__, latency=None)  # whose tests measure latency
    monkeypatch.setattr(Int8Evaluation, "__init__", untimed)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) > 3
    given = {"model": Model(), "datamodule": Images(), "batches": [torch.randn(8, 1, 8, 8)]}
    for block in blocks:
        exec(compile(block, str(README), "exec"), given)
    assert given["metrics"].keys() == {"val/loss", "val/acc"}
