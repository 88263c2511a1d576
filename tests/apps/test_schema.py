"""What the schemas promise: every option of a signature, typed, with the signature's own default."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import MISSING, OmegaConf, ValidationError

from lq_plugin.apps.schema import GIVEN_BY_THE_APP, TARGETS, structured


class Unknown:
    """A type that OmegaConf cannot hold."""


@dataclasses.dataclass(frozen=True)
class Inner:
    depth: int = 3


class Example:
    """One argument of every kind that callbacks use."""

    def __init__(
        self,
        needed: int,
        name: str = "a",
        size: float | None = None,
        label: int | str = 1,
        names: Sequence[str] = ("x", "y"),
        dims: Mapping[str, Sequence[int]] | None = None,
        thing: Unknown | str = "thing",
        inner: Inner = Inner(),
        maybe: Inner | None = Inner(depth=5),
    ) -> None:
        self.given = dict(locals())


def example(**options: Any) -> Any:
    return OmegaConf.merge(OmegaConf.structured(structured(f"{__name__}.Example")), options)


def test_an_instance_has_the_defaults_of_the_signature() -> None:
    given = instantiate(example(needed=1)).given
    defaults = {name: p.default for name, p in inspect.signature(Example).parameters.items() if name != "needed"}
    assert given["names"] == ["x", "y"]
    assert {name: given[name] for name in defaults} == defaults | {"names": ["x", "y"]}


def test_containers_reach_the_callable_as_builtins() -> None:
    given = instantiate(example(needed=1, dims={"x": [2, 3]}, inner={"depth": 4})).given
    assert (given["dims"], type(given["dims"]), type(given["names"])) == ({"x": [2, 3]}, dict, list)
    assert given["inner"] == Inner(depth=4)


def test_an_argument_without_default_is_missing() -> None:
    assert structured(f"{__name__}.Example")().needed == MISSING


@pytest.mark.parametrize("option", ["dims", "maybe", "size"])
def test_optional_options_take_null(option: str) -> None:
    assert instantiate(example(needed=1, **{option: None})).given[option] is None


@pytest.mark.parametrize(
    "wrong", [{"needed": "many"}, {"size": "big"}, {"names": "x"}, {"inner": {"depth": "deep"}}, {"label": [1]}]
)
def test_a_wrong_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        example(**wrong)


@pytest.mark.parametrize("target", TARGETS)
def test_every_option_of_a_target_is_in_its_schema(target: str) -> None:
    parameters = inspect.signature(pkgutil.resolve_name(target)).parameters.items()
    named = {name for name, parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
    options = named - set(GIVEN_BY_THE_APP.get(target, ()))
    assert {field.name for field in dataclasses.fields(structured(target))} == options | {"_target_", "_convert_"}
