"""JSON as dataclasses: the hints say what is allowed, and every message names the place."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from damage.manifests import good

from lq_plugin.report.decoder import REQUIRED, decode, encode
from lq_plugin.report.limits import ContentError, Table, is_a, number, one_of
from lq_plugin.report.manifest import Manifest

Even = Annotated[int, is_a("an even number", lambda value: isinstance(value, int) and value % 2 == 0)]


@dataclass(frozen=True)
class Leaf:
    even: Even
    kind: Annotated[str, one_of("a", "b"), REQUIRED] = "a"
    value: float | None = None


@dataclass(frozen=True)
class Tree:
    leaf: Leaf
    leaves: tuple[Leaf, ...] = ()
    table: Table[float] = field(default_factory=dict)
    names: Mapping[Annotated[str, is_a("a short name", lambda name: len(name) < 3)], bool] = field(default_factory=dict)
    max_drop: Annotated[float, is_a("0 or more", number(0, 1)), REQUIRED] = 0.0
    anything: Any = None


LEAF = {"even": 2, "kind": "b"}
GOOD = {"leaf": LEAF, "max_drop": 1}


def test_what_is_missing_has_its_default_and_what_is_unknown_is_ignored() -> None:
    made = decode(Tree, {**GOOD, "leaves": [LEAF, {**LEAF, "value": 3}], "anything": [{}], "unknown": 1})
    assert made == Tree(Leaf(2, "b"), (Leaf(2, "b"), Leaf(2, "b", 3.0)), max_drop=1.0, anything=[{}])
    assert [type(value) for value in (made.max_drop, made.leaves[1].value)] == [float, float]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"leaf": None}, "leaf is null, not an object"),
        ({"leaf": {}}, "leaf.even is missing"),
        ({"leaf": {"even": 2}}, "leaf.kind is missing"),
        ({"leaf": {**LEAF, "even": 3}}, "leaf.even is 3, not an even number"),
        ({"leaf": {**LEAF, "even": True}}, "leaf.even is true, not an even number"),
        ({"leaves": [LEAF, {**LEAF, "kind": "c"}]}, "leaves[1].kind is 'c', not one of a, b"),
        ({"leaves": {}}, "leaves is an empty object, not a list"),
        ({"table": {"x": "1"}}, "table['x'] is '1', not a number, null, 'inf' or '-inf'"),
        ({"table": {str(n): 1 for n in range(501)}}, "table has 501 entries; at most 500 are read"),
        ({"names": {"long": True}}, "a key of names is 'long', not a short name"),
        ({"names": {"x": 1}}, "names['x'] is 1, not true or false"),
        ({"max_drop": 2}, "max_drop is 2, not 0 or more"),
    ],
)
def test_what_is_not_allowed_is_named_with_its_place(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ContentError) as refused:
        decode(Tree, {**GOOD, **changes})
    assert str(refused.value) == said


def test_the_old_name_of_a_field_is_recognized() -> None:
    with pytest.raises(
        ContentError, match="max_drop is missing; max_loss, its old name, is no longer read: rename it, or run again"
    ):
        decode(Tree, {"leaf": LEAF, "max_loss": 0.1})


def test_figures_that_json_does_not_have_come_back() -> None:
    written = encode({"table": {"a": math.nan, "b": math.inf, "c": -math.inf}})
    assert written == {"table": {"a": None, "b": "inf", "c": "-inf"}}
    table = decode(Tree, {**GOOD, **written}).table
    assert math.isnan(table["a"])
    assert (table["b"], table["c"]) == (math.inf, -math.inf)
    assert decode(Tree, {**GOOD, **written}) == decode(Tree, {**GOOD, **written})  # a nan is the same nan


def test_a_manifest_is_read_without_torch() -> None:
    code = (
        "import json, sys; from lq_plugin.report.manifest import Manifest; import lq_plugin.report.leaderboard;"
        "print(Manifest.from_json(json.load(sys.stdin)).selected,"
        "[name for name in ('torch', 'torchao', 'lightning', 'hydra') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=json.dumps(good()), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "static/onnx []"
    assert Manifest.from_json(good()).chosen is not None
