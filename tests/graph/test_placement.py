"""Which operators are quantized, with which scales, and what is said about the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO, settled

import lq_plugin
from lq_plugin.errors import ConfigError, UnsupportedError
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.placement import Placement, place, place_everywhere
from lq_plugin.graph.prepare import prepare
from lq_plugin.qparams import QuantSpec
from lq_plugin.runtimes import RUNTIMES
from lq_plugin.scheme import Scheme


class Written(nn.Module):
    """Two convolutions and a linear layer, put together by a function."""

    def __init__(self, forward: Callable[[Written, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def graph_of(forward: Callable[[Written, Tensor], Tensor]) -> Graph:
    return prepare(Written(forward).eval(), [torch.ones(2, 3, 8, 8)])


@pytest.fixture(scope="module")
def mobilenet() -> Graph:
    return prepare(settled(ZOO["mobilenet"]), [torch.ones(2, 3, 32, 32)])


@pytest.fixture(scope="module")
def encoder() -> Graph:
    return prepare(settled(ZOO["encoder"]), [torch.ones(2, 12, 32)])


def quantized(placement: Placement) -> Counter[str]:
    return Counter(op.op for op in placement.quantized.values())


def reasons(placement: Placement) -> dict[str, str]:
    return {op.op: op.reason for op in placement.float_ops}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("forward", "operator"),
    [
        (lambda m, x: m.left(x) + m.right(x), "add"),
        (lambda m, x: F.relu(m.left(x)) + F.max_pool2d(m.right(x), 3, 1, 1), "add"),
        (lambda m, x: (m.left(x) + m.right(x)) + m.left(x) * 2, "add"),
        (lambda m, x: torch.cat([m.left(x), F.silu(m.right(x))], 1), "cat"),
        (lambda m, x: m.left(x) * torch.sigmoid(x.mean((2, 3), keepdim=True).sum(1, keepdim=True)), "mul"),
        (lambda m, x: F.max_pool2d(m.left(x), 2), "max_pool2d"),
        (lambda m, x: F.avg_pool2d(F.gelu(m.left(x)), 2), "avg_pool2d"),
        (lambda m, x: F.adaptive_avg_pool2d(m.left(x), 1), "adaptive_avg_pool2d"),
        (lambda m, x: F.interpolate(m.left(x), scale_factor=2).mean((2, 3)), "mean"),
    ],
)
def test_what_lies_between_convolutions_is_quantized(
    forward: Callable[[Written, Tensor], Tensor], operator: str, runtime: str
) -> None:
    assert quantized(place(graph_of(forward), Scheme(), runtime))[operator] >= 1


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("forward", "operator", "reason"),
    [
        (lambda m, x: m.left(x) + x.sum(1, keepdim=True), "add", "not between convolutions"),
        (lambda m, x: m.left(x) + 1, "add", "an input is a number"),
        (lambda m, x: m.left(x) * 2, "mul", "an input is a number"),
        (lambda m, x: m.left(x) + m.fc.bias.view(4, 1, 1), "add", "an input is a constant"),
        (lambda m, x: m.fc(m.left(x).mean((2, 3))) * m.fc(m.right(x).mean((2, 3))), "mul", "not between convolutions"),
        (lambda m, x: torch.cat([m.left(x), x], 1), "cat", "not between convolutions"),
        (lambda m, x: m.left(F.max_pool2d(x, 2)), "max_pool2d", "not after a convolution"),
        (lambda m, x: m.left(F.avg_pool2d(x, 2)), "avg_pool2d", "not after a convolution"),
        (lambda m, x: F.conv2d(x, m.left(x).mean((0, 2, 3)).view(4, 1, 1, 1).expand(4, 3, 1, 1)), "conv2d", "computed"),
        (lambda m, x: m.left(x.double().float()).double() @ m.left(x).double(), "matmul", "not float32"),
        (lambda m, x: m.left(F.relu(x)), "relu", "no quantized operator before it"),
        (lambda m, x: m.left(x).softmax(1), "softmax", "no INT8 form"),
    ],
)
def test_what_stays_float_is_listed_with_its_reason(
    forward: Callable[[Written, Tensor], Tensor], operator: str, reason: str, runtime: str
) -> None:
    found = [op for op in place(graph_of(forward), Scheme(), runtime).float_ops if op.op == operator]
    assert reason in found[0].reason


@pytest.mark.parametrize(
    ("dims", "kept"), [((2, 3), False), ((-1, -2), False), ((3,), True), ((1,), True), ((0, 2, 3), True)]
)
def test_a_mean_over_some_positions_stays_float_where_it_has_no_kernel(dims: tuple[int, ...], kept: bool) -> None:
    graph = graph_of(lambda m, x: m.left(x).mean(dims))
    placements = {runtime: place(graph, Scheme(), runtime) for runtime in RUNTIMES}
    assert quantized(placements["openvino"])["mean"] == quantized(placements["torch"])["mean"] == 1
    assert reasons(placements["onnxruntime"]).get("mean", "").startswith("onnxruntime has no INT8 kernel") is kept


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_residual_sums_on_the_way_to_a_layer_norm_stay_float(encoder: Graph, runtime: str) -> None:
    placement = place(encoder, Scheme(), runtime)
    assert quantized(placement) == {"linear": 7}
    left = Counter(op.op for op in placement.float_ops)
    assert left == {"add": 2, "layer_norm": 2, "scaled_dot_product_attention": 1, "mean": 1}


def test_an_activation_that_the_runtime_computes_along_is_not_listed(mobilenet: Graph) -> None:
    assert "hardswish" in reasons(place(mobilenet, Scheme(), "onnxruntime"))
    assert "hardswish" not in reasons(place(mobilenet, Scheme(), "openvino"))
    for runtime in RUNTIMES:
        assert not {"relu", "hardtanh", "relu6", "clamp"} & reasons(place(mobilenet, Scheme(), runtime)).keys()


def test_values_that_are_only_handed_on_share_the_scale_of_their_origin() -> None:
    graph = graph_of(lambda m, x: m.fc(F.max_pool2d(m.left(x), 8).flatten(1)))
    scales = place(graph, Scheme(), "openvino").scales
    assert scales.pop("tensors_0") == "tensors_0"
    assert len(scales) == 3  # the result of the convolution, and the inputs of the pooling and the linear layer
    assert set(scales.values()) == {"conv2d"}


def test_nearest_upsampling_keeps_the_scale_of_its_input() -> None:
    graph = graph_of(lambda m, x: m.right(F.interpolate(m.left(x)[:, :3], scale_factor=2)))
    assert place(graph, Scheme(), "onnxruntime").scales["upsample_nearest2d"] == "conv2d"


def joined(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], 1)[:, 1:4]


def test_what_openvino_concatenates_has_the_scale_of_the_whole() -> None:
    graph = graph_of(lambda m, x: m.right(joined(y := F.relu(m.left(x)), m.right(F.max_pool2d(y, 3, 1, 1)[:, :3]))))
    placement = place(graph, Scheme(), "openvino")
    assert {placement.scales[value] for value in placement.scales.keys() - {"tensors_0"}} == {"cat"}
    assert {placement.scales[value] for value in placement.inputs["cat"]} == {"cat"}
    scales = place(graph, Scheme(), "onnxruntime").scales  # its kernel takes inputs of different scales
    assert {scales[value] for value in placement.inputs["cat"]} == {"relu", "conv2d_1"}


def test_a_value_in_several_concatenations_has_the_scale_of_one() -> None:
    def dense(m: Written, x: Tensor) -> Tensor:  # as in a DenseNet: each layer reads all that came before
        first, second = m.left(x), m.right(x)
        third = m.left(torch.cat([first, second], 1)[:, 2:5])
        return m.left(torch.cat([first, second, third], 1)[:, :3])

    def crossed(m: Written, x: Tensor) -> Tensor:
        first, second, third = m.left(x), m.right(x), m.left(x[:, [0]].expand(-1, 3, -1, -1))
        return m.left(joined(first, second)) + m.right(joined(first, third))

    scales = place(graph_of(dense), Scheme(), "openvino").scales
    assert {scales[name] for name in ("conv2d", "conv2d_1", "conv2d_2", "cat", "cat_1")} == {"cat_1"}
    placement = place(graph_of(crossed), Scheme(), "openvino")
    assert [placement.scales[name] for name in ("conv2d", "conv2d_1", "conv2d_2")] == ["cat_1", "cat", "cat_1"]
    assert placement.joined <= {"cat_1"}  # the inputs of the other one have two scales


MOVES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x[..., -1, 0],
    lambda x: x[:, :, 2:4].mean((2, 3)),
    lambda x: x.index_select(2, torch.tensor([1])).flatten(1)[:, ::8],
    lambda x: x.chunk(2, 3)[1].transpose(1, 3),
    lambda x: x.unbind(2)[0].permute(0, 2, 1),
]


@pytest.mark.parametrize("move", MOVES)
def test_what_is_moved_to_quantized_inputs_is_quantized_before(move: Callable[[Tensor], Tensor]) -> None:
    graph = graph_of(lambda m, x: m.fc(move(F.relu(m.left(x)))))
    for runtime in RUNTIMES:
        placement = place(graph, Scheme(), runtime)
        assert placement.early == ({"relu"} if runtime == "openvino" else set())
        assert placement.scales[next(iter(placement.inputs["linear"]))] in ("relu", "mean")


def test_what_somebody_reads_as_floats_is_not_quantized_before() -> None:
    for forward in (
        lambda m, x: m.fc((y := m.left(x))[..., 0, 0]) + y.sum(),
        lambda m, x: m.fc(m.norm(x[:, 0, :4, :4]))[0],
    ):
        assert not place(graph_of(forward), Scheme(), "openvino").early


def test_every_quantized_value_is_one_that_calibration_observes(mobilenet: Graph) -> None:
    names = {node.name for node in mobilenet.module.graph.nodes}
    for runtime in RUNTIMES:
        placement = place(mobilenet, Scheme(), runtime)
        used = {value for values in placement.inputs.values() for value in values} | placement.outputs | placement.early
        assert used == placement.scales.keys()
        assert set(placement.scales.values()) <= names


def test_a_product_with_a_constant_matrix_has_a_weight() -> None:
    placement = place(prepare(settled(ZOO["matrices"]), [torch.ones(2, 16)]), Scheme(), "openvino")
    assert sorted(axis for _, axis in placement.weights.values()) == [1, 1]
    assert all(len(values) == 1 for values in placement.inputs.values())


@pytest.mark.parametrize("pattern", ["blocks.0", "blocks.[0]", "blocks.0*"])
def test_skip_leaves_a_module_and_all_below_it_float(mobilenet: Graph, pattern: str) -> None:
    placement = place(mobilenet, Scheme(skip=[pattern]), "openvino")
    assert not [op for op in placement.quantized.values() if op.name.startswith("blocks.0")]
    assert quantized(placement)["conv2d"] == 6
    skipped = [op for op in placement.float_ops if op.reason == f"skipped by {pattern!r}"]
    assert Counter(op.op for op in skipped)["conv2d"] == 5


def test_skip_by_glob_picks_single_modules(mobilenet: Graph) -> None:
    placement = place(mobilenet, Scheme(skip=["blocks.*.excite.reduce"]), "openvino")
    assert quantized(placement)["conv2d"] == 9


def test_skip_by_operator_type_leaves_only_that_type_float(mobilenet: Graph) -> None:
    every, fewer = (place(mobilenet, scheme, "openvino") for scheme in (Scheme(), Scheme(skip=["op:mul"])))
    assert quantized(every) - quantized(fewer) == {"mul": 2}


def test_only_quantizes_nothing_else(mobilenet: Graph) -> None:
    placement = place(mobilenet, Scheme(only=["blocks.1"]), "openvino")
    assert {op.name.startswith("blocks.1") for op in placement.quantized.values()} == {True}
    assert "not named by only" in {op.reason for op in placement.float_ops}


def test_skip_wins_over_only(mobilenet: Graph) -> None:
    placement = place(mobilenet, Scheme(only=["blocks.1", "op:linear"], skip=["blocks.1.excite"]), "openvino")
    assert quantized(placement)["linear"] == 1
    assert not [op for op in placement.quantized.values() if "excite" in op.name]


@pytest.mark.parametrize("argument", ["skip", "only"])
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("blocks.0.exite", "'blocks.0.exite' is unknown. Did you mean 'blocks.0.excite'"),
        ("nothing.*", "'nothing.\\*' is unknown"),
        ("op:conv2", "'op:conv2' is unknown. Did you mean .*'op:conv2d'"),
        ("op:bmm", "'op:bmm' matches no operator of this model. It has: .*op:conv2d"),
    ],
)
def test_a_pattern_that_matches_nothing_names_the_nearest(
    mobilenet: Graph, argument: str, pattern: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"{argument}: {message}"):
        place(mobilenet, Scheme(**{argument: [pattern]}), "onnxruntime")


def test_a_model_without_anything_to_quantize_is_refused_with_what_it_has() -> None:
    graph = prepare(nn.LayerNorm(4), [torch.ones(2, 4)])
    with pytest.raises(ConfigError, match=r"nothing in it can be quantized.*layer_norm: no INT8 form"):
        place(graph, Scheme(), "torch")


def test_a_model_of_which_everything_is_skipped_is_refused(mobilenet: Graph) -> None:
    with pytest.raises(ConfigError, match=r"nothing in it can be quantized.*skipped by '\*'.*relax skip"):
        place(mobilenet, Scheme(skip=["*"]), "torch")


def test_operators_without_an_int8_kernel_stay_float_for_that_runtime_alone() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.grouped = nn.ConvTranspose1d(8, 8, 2), nn.ConvTranspose1d(8, 8, 2, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.grouped(self.plain(x))

    graph = prepare(Up(), [torch.ones(2, 8, 6)])
    with pytest.raises(UnsupportedError, match=r"plain.*: onnxruntime has no INT8 kernel for transposed convolutions"):
        place(graph, Scheme(), "onnxruntime")
    placements = place_everywhere(graph, Scheme())  # the others are not affected
    assert placements.keys() == {"openvino"}
    assert [op.name for op in placements["openvino"].quantized.values()] == ["plain.conv_transpose1d"]
    (left,) = placements["openvino"].float_ops
    assert left.reason == "openvino has no INT8 kernel for grouped transposed convolutions"
    with pytest.raises(UnsupportedError, match=r"grouped.*: torch\.compile computes transposed convolutions wrongly"):
        place(graph, Scheme(), "torch")


def test_products_of_two_activations_stay_float_where_that_is_faster() -> None:
    def products(m: Written, x: Tensor) -> Tensor:
        values = m.left(x).mean((2, 3))
        return m.fc(values) @ m.fc(values).t() @ values.t().relu().t() @ m.fc.weight

    placements = place_everywhere(graph_of(products), Scheme())
    assert {name: quantized(placed)["matmul"] for name, placed in placements.items()} == {
        "onnxruntime": 3,
        "openvino": 1,  # the one with a constant factor
        "torch": 3,
    }
    assert reasons(placements["openvino"])["matmul"].startswith("a product of two activations")
    alone = graph_of(lambda m, x: x.mean((2, 3)) @ x.mean((2, 3)).t())
    with pytest.raises(UnsupportedError, match="matmul: a product of two activations"):
        place(alone, Scheme(), "openvino")
    assert place_everywhere(alone, Scheme()).keys() == RUNTIMES.keys() - {"openvino"}  # the others are not affected


def test_operators_that_are_kept_float_are_listed_with_the_reason(mobilenet: Graph) -> None:
    every = place(mobilenet, Scheme(), "onnxruntime")
    kept = dict.fromkeys(("linear", "conv2d_1"), "chosen to stay float")
    placement = place(mobilenet, Scheme(), "onnxruntime", kept)
    assert every.quantized.keys() - placement.quantized.keys() >= kept.keys()
    said = {op.name.rpartition(".")[2]: op.reason for op in placement.float_ops}
    assert {name: said[name] for name in kept} == kept
    with pytest.raises(ConfigError, match=r"keep_float: 'linaer' is unknown. Did you mean .*'linear'"):
        place(mobilenet, Scheme(), "onnxruntime", {"linaer": "why"})


def test_activations_are_what_the_runtime_wants_unless_the_scheme_says_it(
    mobilenet: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = QuantSpec(signed=True, symmetric=True)
    monkeypatch.setitem(RUNTIMES, "torch", replace(RUNTIMES["torch"], activations=signed))
    assert place(mobilenet, Scheme(), "torch").activation_spec == signed
    assert place(mobilenet, Scheme(), "openvino").activation_spec == QuantSpec(signed=False)
    asked = Scheme(activation_dtype="uint8", activation_symmetric=False)
    assert place(mobilenet, asked, "torch").activation_spec == QuantSpec(signed=False)


def test_a_candidate_is_placed_once() -> None:
    candidate = lq_plugin.quantize(settled(ZOO["matrices"]), [torch.ones(2, 16)])
    assert candidate.placed("torch") is candidate.placed("torch")
    dynamic = lq_plugin.quantize(nn.Linear(4, 2), [torch.ones(2, 4)], "dynamic")
    assert dynamic.placed("openvino") is dynamic.placed("openvino")
