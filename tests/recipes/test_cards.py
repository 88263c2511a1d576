"""A card says of its network what is so."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from torch import nn

import lq_plugin.recipes
from lq_plugin.recipes.mnist_cnn.model import MnistCnn
from lq_plugin.recipes.mnist_vit.model import MnistVit
from lq_plugin.recipes.temps_lstm.model import TempsLstm


@pytest.mark.parametrize("model", [MnistCnn, MnistVit, TempsLstm])
def test_it_states_the_size_of_the_network(model: type[nn.Module]) -> None:
    recipe = model.__module__.split(".")[-2]
    card = resources.files(lq_plugin.recipes).joinpath(recipe, "README.md").read_text()
    made = model()
    stated = re.search(r"([\d,]+) parameters, ([\d.]+) MB", card)
    assert stated
    assert int(stated[1].replace(",", "")) == sum(p.numel() for p in made.parameters())
    size = sum(tensor.nbytes for tensor in made.state_dict().values())
    assert float(stated[2]) == round(size / 1e6, 2)
