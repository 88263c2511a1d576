"""Values are flattened and unflattened in their own containers."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import InitVar, dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from lq_plugin.graph.nesting import Record, children, leaves, mapped, retyped, tensors

Pair = namedtuple("Pair", ["left", "right"])


class Named(Pair):
    """As the outputs of forecasting packages: fields by index, attribute and key."""

    def __getitem__(self, key: Any) -> Any:
        return getattr(self, key) if isinstance(key, str) else super().__getitem__(key)


@dataclass(frozen=True)
class Scored:
    logits: Tensor
    loss: Tensor | None = None
    seen: int = field(default=0, init=False)


@dataclass(frozen=True, slots=True)
class Joined:
    """As the batches of molecules of chemprop: it is not built from its fields."""

    parts: InitVar[list[Tensor]]
    joined: Tensor = field(init=False)
    count: int = field(init=False)

    def __post_init__(self, parts: list[Tensor]) -> None:
        object.__setattr__(self, "joined", torch.cat(parts))
        object.__setattr__(self, "count", len(parts))


@dataclass
class Output(OrderedDict[str, Any]):
    """As the outputs of Hugging Face's models: the fields that are not None are keys."""

    logits: Tensor | None = None
    loss: Tensor | None = None

    def __post_init__(self) -> None:
        self.update({name: value for name, value in vars(self).items() if value is not None})


A, B = torch.zeros(2), torch.ones(3)


@pytest.mark.parametrize(
    ("value", "kind", "keys"),
    [
        (Scored(A), "record", ["logits", "loss", "seen"]),
        (Joined([A]), "record", ["joined", "count"]),
        (Record(x=A), "record", ["x"]),
        (Output(logits=A), "record", ["logits"]),
        (Pair(A, B), "named_tuple", ["left", "right"]),
        (UserDict(x=A), "dict", ["x"]),
        (OrderedDict(x=A), "ordered_dict", ["x"]),
        ([A, B], "list", [0, 1]),
        (torch.max(torch.zeros(1, 2), 1), "tuple", [0, 1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_containers_have_kinds_and_keys(value: Any, kind: str, keys: list[Any]) -> None:
    opened = children(value)
    assert opened is not None
    assert (opened[0], [key for key, _ in opened[1]]) == (kind, keys)


@pytest.mark.parametrize("value", [A, None, "text", Scored, pack_sequence([A])], ids=lambda value: type(value).__name__)
def test_everything_else_is_a_leaf(value: Any) -> None:
    assert children(value) is None
    assert list(leaves(value)) == [value]


def test_tensors_are_found_and_replaced_in_their_containers() -> None:
    value = {"a": Scored(A, loss=B), "b": [Named(A, 3), Output(logits=B)]}
    assert [id(tensor) for tensor in tensors(value)] == [id(tensor) for tensor in (A, B, A, B)]
    copied = mapped(lambda tensor: tensor + 1, value)
    assert torch.equal(copied["a"].loss, B + 1)
    assert type(copied["b"][0]) is Named
    assert torch.equal(copied["b"][0]["left"], A + 1)
    assert torch.equal(copied["b"][1].logits, B + 1)
    assert torch.equal(A, torch.zeros(2))


def test_a_dataclass_is_replaced_without_its_constructor() -> None:
    copied = mapped(lambda tensor: tensor + 1, Joined([A, B]))
    assert (type(copied), copied.count) == (Joined, 2)
    assert torch.equal(copied.joined, torch.cat([A, B]) + 1)


def test_a_record_stays_one() -> None:
    assert torch.equal(mapped(lambda tensor: tensor + 1, Record(x=A)).x, A + 1)


def test_classes_are_given_back() -> None:
    given = (Record(logits=A), Pair(A, B), {"deep": Record(logits=B, loss=None, seen=0)}, None)
    like = (Output(logits=B), Named(B, A), {"deep": Scored(A)}, None)
    first, second, third, nothing = retyped(given, like)
    assert (type(first), type(second), type(third["deep"]), nothing) == (Output, Named, Scored, None)
    assert first.logits is A
    assert second["right"] is B
    assert third["deep"].logits is B


def test_what_has_its_class_is_left_as_it_is() -> None:
    scored = Scored(A)
    assert retyped(scored, Scored(B)) is scored
    assert retyped(A, B) is A


def test_packed_sequences_are_mapped_field_by_field() -> None:
    packed = pack_sequence([torch.ones(2, 3), torch.ones(4, 3)], enforce_sorted=False)
    made = mapped(torch.clone, packed)
    assert type(made) is type(packed)
    for one, other in zip(made, packed, strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
