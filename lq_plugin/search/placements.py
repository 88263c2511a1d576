"""Which operators to leave float on one runtime, from the microseconds that INT8 saves in each of them.

A runtime computes some layers more slowly on integers: where an activation has no INT8 kernel, what its float kernel
computes in one step with the layer takes four (dequantize, two float nodes, quantize). Leaving such layers float moves
the quantize/dequantize pairs to their neighbours, so a proposal has to be measured as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set

from torch import fx

from lq_plugin.coverage import Duration
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.nodes import operator_type
from lq_plugin.graph.operators import CONVOLUTIONS

_MOST_OF_THE_GAIN = 0.75


def charged(durations: Sequence[Duration], operators: Set[str]) -> dict[str, float]:
    """Sum up the microseconds of a runtime's nodes by operator.

    What is no operator itself (quantize, dequantize, activations, changes of the memory layout) is charged to the
    operator that ran last before it; what ran before all operators to the first one.

    Args:
        durations: in the order in which the nodes run.
        operators: names of operators, as layers keep them in artifacts.

    Example:
        >>> durations = [Duration(frozenset(names), 1.0) for names in ((), {"conv"}, (), {"linear"})]
        >>> charged(durations, {"conv", "linear"})
        {'conv': 3.0, 'linear': 1.0}
    """
    found: dict[str, float] = {}
    current, waiting = "", 0.0
    for each in durations:
        current = next(iter(sorted(each.nodes & operators)), current)
        if current:
            found[current] = found.get(current, 0.0) + each.microseconds + waiting
            waiting = 0.0
        else:
            waiting += each.microseconds
    return found


def proposals(
    kinds: Mapping[str, str], sources: Mapping[str, Set[str]], saved: Mapping[str, float]
) -> list[frozenset[str]]:
    """Propose sets of operators to leave float; at least one layer stays INT8.

    The kinds of operators that lose time as a whole, which is known best where single operators take microseconds; all
    operators that lose time; and all but the few that save most, because each change between float and INT8 takes time.

    Args:
        kinds: what kind each operator in INT8 is.
        sources: the operators in INT8 that each of them reads from.
        saved: microseconds that INT8 saves by operator, negative where it costs time. Operators without a figure
            (sums, poolings), whose time is charged to others, follow most of their sources.

    Returns:
        Different sets, none of them empty; none at all where INT8 saves no time in any operator, or in every one.

    Example:
        >>> kinds = {"conv": "conv2d", "add": "add", "linear": "linear"}
        >>> sources = {"conv": set(), "add": {"conv"}, "linear": {"add"}}
        >>> [sorted(names) for names in proposals(kinds, sources, {"conv": -3.0, "linear": 5.0})]
        [['add', 'conv']]
    """
    known = {name: saved[name] for name in kinds if name in saved}
    by_kind: dict[str, float] = defaultdict(float)
    for name, microseconds in known.items():
        by_kind[kinds[name]] += microseconds
    losing = {name for name, microseconds in known.items() if microseconds <= 0}
    of_losing_kinds = {name for name in known if by_kind[kinds[name]] <= 0}
    found = [
        _with_followers(chosen, kinds.keys() - known.keys(), sources)
        for chosen in (of_losing_kinds, losing, known.keys() - _best(known))
        if known.keys() - chosen
    ]
    return [chosen for chosen in dict.fromkeys(found) if chosen] if losing else []


def _best(saved: Mapping[str, float]) -> set[str]:
    """The few operators that together save most of what can be saved."""
    order = sorted((name for name in saved if saved[name] > 0), key=lambda name: -saved[name])
    wanted, best = _MOST_OF_THE_GAIN * sum(saved[name] for name in order), set[str]()
    for name in order:
        if sum(saved[each] for each in best) >= wanted:
            break
        best.add(name)
    return best


def _with_followers(chosen: Set[str], followers: Set[str], sources: Mapping[str, Set[str]]) -> frozenset[str]:
    """Add operators most of whose sources are float: in INT8 they would only move a conversion to before them."""
    floats = set(chosen)
    while more := {name for name in followers - floats if 2 * len(sources[name] & floats) > len(sources[name])}:
        floats |= more
    return frozenset(floats)


def sources(graph: Graph, operators: Set[str]) -> dict[str, set[str]]:
    """Return for each operator those that it reads from, directly or through other nodes.

    Args:
        graph: a folded graph.
        operators: names of nodes.
    """
    read: dict[fx.Node, set[str]] = {}
    found: dict[str, set[str]] = {}
    for node in graph.module.graph.nodes:
        read[node] = set[str]().union(*(read[each] for each in node.all_input_nodes))
        if node.name in operators:
            found[node.name], read[node] = read[node], {node.name}
    return found


def kind(node: fx.Node) -> str:
    """Return the operator's type; convolutions with groups of channels are a kind of their own."""
    name = operator_type(node)
    if name not in CONVOLUTIONS:
        return name
    position = [argument.name for argument in node.target._schema.arguments].index("groups")  # type: ignore[union-attr]
    return name if [*node.args, *[1] * position][position] == 1 else f"grouped {name}"
