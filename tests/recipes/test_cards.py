"""A card says of its network what is so."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

import lq_plugin.conf
import lq_plugin.recipes

CONF = Path(str(resources.files(lq_plugin.conf)))
RECIPES = sorted(file.stem for file in CONF.glob("recipe/*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_states_the_size_of_the_network(recipe: str) -> None:
    card = resources.files(lq_plugin.recipes).joinpath(recipe, "README.md").read_text()
    made = get_class(OmegaConf.load(CONF / "model" / f"{recipe}.yaml")._target_)()
    stated = re.search(r"([\d,]+) parameters, ([\d.]+) MB", card)
    assert stated
    assert int(stated[1].replace(",", "")) == sum(p.numel() for p in made.parameters())
    size = sum(tensor.nbytes for tensor in made.state_dict().values())
    assert float(stated[2]) == round(size / 1e6, 2)
