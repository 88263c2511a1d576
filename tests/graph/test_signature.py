"""Calls become flat lists of tensors and outputs come back, whatever their structure."""

from __future__ import annotations

import enum
import json
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lq_plugin.errors import ArtifactError, CaptureError
from lq_plugin.graph.capture import capture
from lq_plugin.graph.signature import Signature, describe
from lq_plugin.graph.structure import flatten

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Scored:
    logits: Any
    aux: Any


A, B, C = torch.zeros(2, 3), torch.ones(2), torch.full((1,), 2)


def signed(forward: Any, *args: Any, **kwargs: Any) -> Signature:
    """As it is read back from an artifact."""
    signature = Signature(describe(forward, args, kwargs), {"constant": None})
    return Signature.from_json(json.loads(json.dumps(signature.to_json())))


def plain(x: Tensor, scale: float = 1.0, *, flag: bool = False, other: Tensor | None = None) -> None: ...


def nested(batch: dict[str, Any], rest: list[Any]) -> None: ...


def variadic(x: Tensor, *more: Tensor, **named: Tensor) -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((A,), {}), ((A, 1.0), {}), ((), {"x": A}), ((), {"flag": False, "scale": 1.0, "x": A}), ((A,), {"other": None})],
)
def test_defaults_may_be_omitted_and_arguments_given_by_keyword(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    (found,) = signed(plain, A).flatten(args, kwargs)
    assert found is A


def test_a_dicts_keys_may_come_in_any_order() -> None:
    signature = signed(nested, {"a": A, "b": {"c": B}}, [C, (A,)])
    assert [id(t) for t in signature.flatten(({"b": {"c": B}, "a": A}, [C, (A,)]), {})] == [id(A), id(B), id(C), id(A)]
    assert [name for name, _ in signature.tensors()] == ["batch.a", "batch.b.c", "rest.0", "rest.1.0"]


def test_call_is_the_opposite_of_flatten() -> None:
    for forward, args, kwargs in (
        (plain, (A,), {"other": B}),
        (nested, ({"a": A, "b": {"c": B}}, [C, (A,)]), {}),
        (variadic, (A, B, C), {"z": A, "y": B}),
    ):
        signature = signed(forward, *args, **kwargs)
        tensors = signature.flatten(args, kwargs)
        again = signature.flatten(*signature.call(tensors))
        assert [id(tensor) for tensor in again] == [id(tensor) for tensor in tensors]


def test_variadic_arguments_keep_their_places() -> None:
    signature = signed(variadic, A, B, C, z=A, y=B)
    found = signature.flatten((A, B, C), {"y": B, "z": A})
    assert [id(tensor) for tensor in found] == [id(tensor) for tensor in (A, B, C, A, B)]


@pytest.mark.parametrize(
    "output",
    [
        A,
        (A, B),
        [A, (B, None)],
        {"b": A, "a": [B, 3, "text", True, 0.5]},
        OrderedDict(second=A, first={"deep": (B,)}),
        {0: A, True: B},
        None,
    ],
    ids=str,
)
def test_an_output_comes_back_in_its_own_types_and_order(output: Any) -> None:
    tensors: list[Tensor] = []
    signature = Signature((), json.loads(json.dumps(flatten(output, "output", tensors))))
    assert _same(signature.unflatten(tensors), output)


def _same(given: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return (
            type(given) is type(wanted)
            and list(given) == list(wanted)
            and all(_same(given[key], wanted[key]) for key in wanted)
        )
    if isinstance(wanted, list | tuple):
        return type(given) is type(wanted) and len(given) == len(wanted) and all(map(_same, given, wanted))
    return given is wanted if isinstance(wanted, Tensor) else type(given) is type(wanted) and given == wanted


def test_fields_come_back_by_name_without_their_class() -> None:
    tensors: list[Tensor] = []
    described = flatten([Pair(A, B), Scored(C, aux={"left": A})], "output", tensors)
    pair, scored = Signature((), json.loads(json.dumps(described))).unflatten(tensors)
    left, right = pair
    assert (left, right, pair.right) == (A, B, B)
    assert scored.logits is scored["logits"] is C
    assert scored.aux["left"] is A
    with pytest.raises(AttributeError, match="no field 'loss'; there are logits, aux"):
        _ = scored.loss


def test_arguments_with_fields_are_taken_by_name() -> None:
    def forward(pair: Pair, scored: Scored) -> None: ...

    signature = signed(forward, Pair(A, B), Scored(C, aux=None))
    found = signature.flatten((Pair(B, A)._replace(left=A, right=B), Scored(C, aux=None)), {})
    assert [id(tensor) for tensor in found] == [id(tensor) for tensor in (A, B, C)]
    assert [name for name, _ in signature.tensors()] == ["pair.left", "pair.right", "scored.logits"]
    (pair, scored), _ = signature.call(found)
    assert (pair.left, scored.logits) == (A, C)
    with pytest.raises(ArtifactError, match=r"argument pair: expected a named tuple with the fields"):
        signature.flatten(((A, B), Scored(C, aux=None)), {})
    with pytest.raises(ArtifactError, match=r"argument scored\.logits: expected a tensor, got NoneType"):
        signature.flatten((Pair(A, B), Scored(None, aux=None)), {})


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((A, 2.0), {}, r"argument scale: given 2.0, but the graph was captured with the constant 1.0"),
        ((A, 1), {}, r"argument scale: given 1, but the graph was captured with the constant 1.0"),
        ((A,), {"flag": True}, r"argument flag: given True, .* constant False"),
        ((A,), {"other": B}, r"argument other: given tensor.* constant None"),
        ((), {}, r"missing a required argument: 'x'"),
        ((A,), {"y": B}, r"unexpected keyword argument 'y'"),
        ((B,), {}, r"argument x: expected float32 of shape \[2, 3\], got float32 of shape \[2\]"),
        ((A.double(),), {}, r"argument x: expected float32 of shape .* got float64"),
        ((3,), {}, r"argument x: expected a tensor, got int"),
    ],
)
def test_a_call_that_does_not_fit_says_why(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        signed(plain, A).flatten(args, kwargs)


@pytest.mark.parametrize(
    ("batch", "rest", "message"),
    [
        ({"a": A}, [C], r"argument batch: expected a dict with the keys \['a', 'b'\], got \['a'\]"),
        ({"a": A, "b": B, "c": C}, [C], r"got \['a', 'b', 'c'\]"),
        (A, [C], r"argument batch: expected a dict .* got Tensor"),
        ({"a": A, "b": B}, [C, C], r"argument rest: expected a list of 1 items, got 2 items"),
        ({"a": A, "b": B}, C, r"argument rest: expected a list of 1 items, got Tensor"),
        ({"a": A, "b": C}, [C], r"argument batch\.b: expected float32"),
    ],
)
def test_a_nested_argument_that_does_not_fit_says_where(batch: Any, rest: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        signed(nested, {"a": A, "b": B}, [C]).flatten((batch, rest), {})


def test_a_default_that_is_no_constant_must_be_given() -> None:
    default = torch.zeros(1)

    def forward(x: Tensor, y: Tensor = default) -> None: ...

    signature = signed(forward, A)
    assert [id(tensor) for tensor in signature.flatten((A, default), {})] == [id(A), id(default)]
    with pytest.raises(ArtifactError, match="missing a required argument: 'y'"):
        signature.flatten((A,), {})


def test_keys_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(CaptureError, match="keys of a dict must be str, int or bool"):
        flatten({(1, 2): A}, "output", [])


class Stage(enum.Enum):
    TRAIN = "train"


class Given(NamedTuple):
    x: Tensor
    stage: Stage

    def doubled(self) -> Tensor:
        return 2 * self.x


class TakesGiven(nn.Module):
    def forward(self, given: Given, stage: Stage = Stage.TRAIN) -> dict[str, Any]:
        assert isinstance(given, Given)
        return {"y": given.doubled(), "cache": object()}


def test_a_forward_gets_its_own_classes_and_a_file_holds_names_alone() -> None:
    graph = capture(TakesGiven(), [Given(A, Stage.TRAIN)])
    (given, stage), _ = graph.signature.call([A])
    assert isinstance(given, Given)
    assert stage is Stage.TRAIN
    assert graph.signature.unflatten(graph.module(A))["cache"] is None
    read = Signature.from_json(json.loads(json.dumps(graph.signature.to_json())))
    assert read.flatten([Given(A, Stage.TRAIN)], {})[0] is A
    assert "Stage.TRAIN" in str(read._inspected)
    with pytest.raises(ArtifactError, match=r"given\.stage: given 'train', but .* the constant Stage\.TRAIN"):
        read.flatten([Given(A, "train")], {})  # type: ignore[arg-type]


def test_a_long_name_is_cut_where_it_is_written_so_that_it_can_be_read() -> None:
    longest = enum.Enum("L" * 300, ["FIRST"])  # type: ignore[misc]
    output = flatten({"stage": longest.FIRST, "cache": type("C" * 300, (), {})()}, "output", [], of_output=True)
    written = Signature(describe(plain, (A,), {}), output).to_json()
    read = Signature.from_json(json.loads(json.dumps(written))).output["dict"]
    assert [len(str(*content.values())) for _, content in read] == [200, 200]
