"""A ``.pt2`` that runs code, reads or writes files, or takes all time or memory is refused before torch sees it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage.tampering import PT2_GRAPH, batch, members, network, pack, signed_again, with_graph
from torch import Tensor, nn
from torch.nn import functional as F

import lq_plugin
from lq_plugin.artifacts import pt2
from lq_plugin.artifacts.pt2_graph import is_operator
from lq_plugin.artifacts.pt2_sizes import is_expression
from lq_plugin.errors import ArtifactError, ExportError
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.prepare import prepare

LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


@pytest.fixture
def folder(artifacts: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifacts["pt2"], tmp_path / "pt2"))


def loaded_by_torch(folder: Path) -> None:
    """Load and call a file as the plugin did before it checked; what is planted need not be a whole model."""
    with contextlib.suppress(Exception):
        torch.export.load(folder / "model.pt2").module(check_guards=False)(batch())


def nodes(program: Any) -> list[Any]:
    found: list[Any] = program["graph_module"]["graph"]["nodes"]
    return found


def root(program: Any) -> Any:
    """Signature of the graph's own call."""
    return program["graph_module"]["module_call_graph"][0]["signature"]


# What runs code while a file is loaded: treespecs name modules, and names are put into source code.


def planted_factory(module: str) -> dict[str, Any]:
    context = {"default_factory_module": module, "default_factory_name": "dict", "dict_context": []}
    return {"type": "collections.defaultdict", "context": context, "children_spec": []}


def planted_enum(module: str) -> dict[str, Any]:
    context = [{"__enum__": True, "fqn": f"{module}:Missing", "name": "first"}]
    return {"type": "builtins.dict", "context": json.dumps(context), "children_spec": [LEAF]}


def planted_tuple(module: str) -> dict[str, Any]:
    context = {"class_name": "Planted", "fields": ["__import__('planted')"]}
    return {"type": "collections.namedtuple", "context": context, "children_spec": [LEAF]}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("planted", [planted_factory, planted_enum])
@pytest.mark.parametrize("spec", ["in_spec", "out_spec"])
@pytest.mark.filterwarnings("ignore")
def test_a_treespec_imports_no_module(
    spec: str, planted: Any, nested: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "planted.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    tree = planted("planted")
    if nested:
        tree = {"type": "builtins.tuple", "context": "null", "children_spec": [LEAF, tree]}
    with_graph(folder, lambda program: root(program).update({spec: json.dumps([1, tree])}))
    loaded_by_torch(folder)
    assert marker.exists(), "torch itself does not import the module, so refusing it shows nothing"
    marker.rmdir()
    sys.modules.pop("planted", None)
    with pytest.raises(ArtifactError, match=f"as {spec}, which could run code"):
        lq_plugin.load(folder)
    assert not marker.exists()


def test_the_signature_of_a_submodule_is_checked_too(folder: Path) -> None:
    def plant(program: Any) -> None:
        call = root(program) | {"out_spec": json.dumps([1, planted_tuple("planted")])}
        program["graph_module"]["module_call_graph"].append({"fqn": "inner", "signature": call})

    with pytest.raises(ArtifactError, match="as out_spec, which could run code"):
        lq_plugin.load(with_graph(folder, plant))


@pytest.mark.parametrize("kind", ["builtins.list", "collections.OrderedDict", "builtins.dict"])
def test_plain_containers_are_allowed(kind: str, folder: Path) -> None:
    context = "null" if kind.endswith("list") else json.dumps(["first"])
    tree = {"type": kind, "context": context, "children_spec": [LEAF]}
    with_graph(folder, lambda program: root(program).update(out_spec=json.dumps([1, tree])))
    given = pt2.load_module(folder)(batch())
    assert isinstance(given, list if kind.endswith("list") else dict)


@pytest.mark.filterwarnings("ignore")
def test_names_are_no_source_code(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    def plant(program: Any) -> None:
        # The second of two names ends the text that the first begins, wherever torch writes both.
        planted = f"__import__('os').makedirs({str(marker)!r}, exist_ok=True)"
        root(program)["forward_arg_names"] = [f"a={planted}):\n    '''", "#"]
        version, tree = json.loads(root(program)["in_spec"])
        tree["children_spec"][0]["children_spec"].append(LEAF)
        root(program)["in_spec"] = json.dumps([version, tree])

    with_graph(folder, plant)
    loaded_by_torch(folder)
    assert marker.exists(), "torch itself does not run the name, so refusing it shows nothing"
    marker.rmdir()
    with pytest.raises(ArtifactError, match="as forward_arg_names, which could run code"):
        lq_plugin.load(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "x = exit()"),
        ("as_name", "x, y"),
        ("parameter_name", 'target.0"), exit(), ("'),
        ("parameter_name", "target.__class__.bias"),
        ("buffer_name", "back\\slash"),
    ],
)
def test_no_other_name_is_source_code(key: str, value: str, folder: Path) -> None:
    def rename(content: Any) -> bool:
        """Change the first value under the key."""
        if isinstance(content, dict) and isinstance(content.get(key), str):
            content[key] = value
            return True
        inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
        return any(map(rename, inner))

    with_graph(folder, lambda program: None if rename(program) else pytest.fail(f"there is no {key}"))
    with pytest.raises(ArtifactError, match=f"as {key}, which could run code"):
        lq_plugin.load(folder)


@pytest.mark.parametrize("argument", ["as_operator", "as_custom_obj", "as_string_to_argument"])
def test_arguments_that_export_never_writes_are_refused(argument: str, folder: Path) -> None:
    with_graph(folder, lambda program: nodes(program)[-1]["inputs"][-1].update(arg={argument: {}}))
    with pytest.raises(ArtifactError, match=f"has an argument of the kind {argument}"):
        lq_plugin.load(folder)


def test_traces_of_the_origin_are_not_looked_up(folder: Path) -> None:
    with_graph(folder, lambda program: nodes(program)[-1].update(metadata={"source_fn_stack": "x,torch.os.system"}))
    with pytest.raises(ArtifactError, match="as source_fn_stack, which could run code"):
        lq_plugin.load(folder)


# What reads and writes files, or changes the process, when a graph is called.


def reading(program: Any, secret: Path, shared: bool) -> None:
    """Make the graph return the bytes of a file."""
    arguments: dict[str, Any] = {"filename": {"as_string": str(secret)}, "shared": {"as_bool": shared}}
    arguments |= {"size": {"as_int": 8}, "dtype": {"as_scalar_type": 1}}
    planted = nodes(program)[-1] | {
        "target": "torch.ops.aten.from_file.default",
        "inputs": [
            {"name": name, "arg": value, "kind": 2 if name == "dtype" else 1} for name, value in arguments.items()
        ],
    }
    nodes(program)[-1] = planted


@pytest.mark.filterwarnings("ignore")
def test_a_graph_reads_no_file(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"password")
    with_graph(folder, lambda program: reading(program, secret, False))
    (given,) = torch.export.load(folder / "model.pt2").module(check_guards=False)(batch())
    assert bytes(given.tolist()) == b"password", "torch itself does not read the file, so refusing it shows nothing"
    with pytest.raises(ArtifactError, match=r"has 'torch\.ops\.aten\.from_file\.default' as target"):
        lq_plugin.load(folder)


@pytest.mark.filterwarnings("ignore")
def test_a_graph_writes_no_file(folder: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen"
    with_graph(folder, lambda program: reading(program, chosen, True))
    loaded_by_torch(folder)
    assert chosen.exists(), "torch itself does not write the file, so refusing it shows nothing"
    chosen.unlink()
    with pytest.raises(ArtifactError, match=r"has 'torch\.ops\.aten\.from_file\.default' as target"):
        lq_plugin.load(folder)
    assert not chosen.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.save.default",  # of TorchScript: writes a file
        "torch.ops.aten.manual_seed.default",
        "torch.ops.aten.set_grad_enabled.default",
        "torch.ops.aten._print.default",
        "torch.ops.aten.relu_.default",
        "torch.ops.aten.add.out",
        "torch.ops.aten.from_file.out",
        "torch.ops.aten.relu",
        "torch.ops.aten.relu.__class__",
        "torch.ops.aten.no_such.default",
        "torch.ops.quantized.linear.new",
        "torch.ops.prims.sin.default",
        "torch.ops.lq_plugin.onnx_layer.default",
        "torch.ops.higher_order.while_loop",
        "torch.ops.higher_order.triton_kernel_wrapper_functional",
        "torch.ops.load_library",
        "torch.load",
        "torch.os.system",
        "torch.sym_fresh_size",
        "math.factorial",
        "_operator.setitem",
        "_operator.lshift",
        "_operator.methodcaller",
        "#planted:operator",
    ],
)
def test_operators_that_do_more_than_compute_are_refused(target: str, folder: Path) -> None:
    with_graph(folder, lambda program: nodes(program)[-1].update(target=target))
    with pytest.raises(ArtifactError, match="as target, which could run code"):
        lq_plugin.load(folder)


def test_no_operator_that_is_allowed_changes_its_arguments_or_takes_a_file() -> None:
    schemas = torch._C._jit_get_all_schemas()
    allowed = [
        s for s in schemas if is_operator(f"torch.ops.{s.name.replace('::', '.')}.{s.overload_name or 'default'}")
    ]
    assert len(allowed) > 1000
    assert not [str(s) for s in allowed if s.is_mutable]
    assert not [str(s) for s in allowed if any("file" in argument.name for argument in s.arguments)]


# What hangs, or takes more memory than the file on disk.


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9**9",
        "Pow(Integer(9), Integer(999999999))",
        "Pow(Pow(Integer(9), Integer(4)), Integer(4))",
        "Pow(Symbol('s0', integer=True), Integer(99))",
        "Pow(Symbol('s0', integer=True), Symbol('s1', integer=True))",
        "Pow(Pow(Symbol('s0'), Integer(8)), Integer(8))",
        "Mul(" + "Add(Symbol('s0'), Symbol('s1')), " * 9 + ")",
        "Max(" + "".join(f"Symbol('s{n}'), " for n in range(100)) + ")",
        f"Integer({'9' * 30})",
        "Integer(1e9)",
        "Float('1e999999999', precision=53)",
        "Float('1.5', precision=999999999)",
        "factorial(Integer(999999))",
        "Integer(3) * Integer(4)",
        "(lambda: 1)()",
        "Symbol('s0').free_symbols",
        "Symbol('__import__')",
        "__import__('os')",
        "Integer(True)",
        "Not(" * 500 + "true" + ")" * 500,
        "Add(" + "Integer(1), " * 5000 + ")",
        "\0",
        "",
    ],
)
def test_expressions_that_export_never_writes_are_refused(expression: str, folder: Path) -> None:
    assert not is_expression(expression)
    with_graph(
        folder,
        lambda program: program["graph_module"]["graph"]["tensor_values"]["tensors_0"]["sizes"].__setitem__(
            0, {"as_expr": {"expr_str": expression, "hint": None}}
        ),
    )
    with pytest.raises(ArtifactError, match="as expr_str, which could run code or exhaust memory"):
        lq_plugin.load(folder)


def test_torch_does_not_count_up_to_a_number_of_the_file(folder: Path) -> None:
    with_graph(folder, lambda program: program["range_constraints"].update(u99999999999={"min_val": 0, "max_val": 9}))
    with pytest.raises(ArtifactError, match="has 'u99999999999' as range_constraints"):
        lq_plugin.load(folder)


def test_a_power_is_small_and_constant(folder: Path) -> None:
    def plant(program: Any) -> None:
        arguments = [{"name": name, "arg": {"as_int": 9**9}, "kind": 1} for name in "ab"]
        nodes(program)[-1].update(target="_operator.pow", inputs=arguments)

    with pytest.raises(ArtifactError, match="raises a size to a power other than 0 to 4"):
        lq_plugin.load(with_graph(folder, plant))


def test_a_compressed_archive_is_refused(folder: Path) -> None:
    content = members(folder / "model.pt2")
    pack(folder / "model.pt2", content | {"archive/data/weights/weight_0": bytes(10**8)}, zipfile.ZIP_DEFLATED)
    assert (folder / "model.pt2").stat().st_size < 10**6
    with pytest.raises(ArtifactError, match=r"compressed or encrypted"):
        lq_plugin.load(signed_again(folder))


def patched(file: Path, change: Callable[[bytearray, int, int], None]) -> None:
    """Change the local header (at the first position) and the directory's entry (at the second) of the first member."""
    content = bytearray(file.read_bytes())
    change(content, content.index(b"PK\3\4"), content.index(b"PK\1\2"))
    file.write_bytes(content)


def grown(content: bytearray, local: int, entry: int) -> None:
    content[entry + 24 : entry + 28] = (10**9).to_bytes(4, "little")  # the uncompressed size


def encrypted(content: bytearray, local: int, entry: int) -> None:
    content[local + 6] |= 1
    content[entry + 8] |= 1


@pytest.mark.parametrize(("change", "said"), [(grown, "two sizes"), (encrypted, "compressed or encrypted")])
def test_headers_that_lie_are_refused(change: Any, said: str, folder: Path) -> None:
    patched(folder / "model.pt2", change)
    with pytest.raises(ArtifactError, match=said):
        lq_plugin.load(signed_again(folder))


def test_members_do_not_overlap(folder: Path) -> None:
    """Many entries of the directory that share the bytes of one member make a bomb without compression."""
    pack(folder / "model.pt2", {f"archive/data/weights/weight_{n}": bytes(10**5 if n == 0 else 0) for n in range(200)})
    content = bytearray((folder / "model.pt2").read_bytes())
    first = content.index(b"PK\1\2")
    fields, entry = content[first + 16 : first + 28], first  # checksum and both sizes
    while (entry := content.find(b"PK\1\2", entry + 1)) >= 0:
        content[entry + 16 : entry + 28] = fields
    (folder / "model.pt2").write_bytes(content)
    with pytest.raises(ArtifactError, match="holds members that overlap"):
        lq_plugin.load(signed_again(folder))


def test_torch_sees_the_members_that_were_checked(folder: Path) -> None:
    """Of two archives one after the other, Python reads the last and torch the first."""
    good, file = members(folder / "model.pt2"), folder / "model.pt2"
    program = json.loads(good[PT2_GRAPH])
    nodes(program)[-1]["target"] = "torch.ops.aten.from_file.default"
    planted = json.dumps(program).encode()
    size = max(len(planted), len(good[PT2_GRAPH]))
    pack(file, good | {PT2_GRAPH: planted.ljust(size)})
    first = file.read_bytes()
    pack(file, good | {PT2_GRAPH: good[PT2_GRAPH].ljust(size)})
    file.write_bytes(first + file.read_bytes())
    assert b"from_file" not in members(file)[PT2_GRAPH]
    assert b"from_file" in torch._C.PyTorchFileReader(str(file)).get_record("models/model.json")
    assert "from_file" not in str(pt2.load_module(folder).graph)
    assert lq_plugin.load(signed_again(folder))(batch()).shape == (2, 3)


def test_a_weight_of_no_bytes_is_not_made_up(folder: Path) -> None:
    content = members(folder / "model.pt2")
    config = json.loads(content["archive/data/weights/model_weights_config.json"])
    entry = next(entry for entry in config["config"].values() if entry["path_name"] == "weight_0")
    entry["tensor_meta"]["sizes"] = [{"as_int": 10**10}]
    content["archive/data/weights/model_weights_config.json"] = json.dumps(config).encode()
    pack(folder / "model.pt2", content | {"archive/data/weights/weight_0": b""})
    with pytest.raises(ArtifactError, match="in an empty member"):
        lq_plugin.load(signed_again(folder))


def test_a_graph_of_more_than_the_limit_is_not_parsed(folder: Path) -> None:
    content = members(folder / "model.pt2")
    pack(folder / "model.pt2", content | {PT2_GRAPH: content[PT2_GRAPH].ljust((16 << 20) + 1)})
    with pytest.raises(ArtifactError, match="of more than 16 MiB"):
        lq_plugin.load(signed_again(folder))


# Export writes nothing that load refuses.


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.first(x).relu(), lambda x: self.second(x) * x.shape[0], (x,))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.linear(x).chunk(3, -1)
        return (q @ k.transpose(1, 2)).softmax(-1).contiguous() @ v


class Resizing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Conv2d(1, 1, 3, stride=2, padding=1) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.interpolate(self.layers(x), scale_factor=1.5), size=x.shape[2:])


class Computed(nn.Module):
    """Sizes that are computed of sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        n = x.shape[1]
        torch._check(n > 1)
        y = self.linear(x) * n**2 / (n + 1)
        return y[:, : max(n // 2, 1)], y[:, : min(n, 3)], x.new_zeros(n, n), torch.arange(n // 2 + n % 2)


class Selecting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[x.sum(-1) > 0])


def graph_of(module: nn.Module, x: Tensor, axes: list[int]) -> Graph:
    return prepare(module.eval(), (x,), {}, {"x": axes})


@pytest.mark.parametrize(
    ("module", "x", "axes", "other"),
    [
        (Conditional, torch.randn(3, 4), [0], torch.randn(5, 4)),
        (Attention, torch.randn(2, 5, 4), [1], torch.randn(3, 7, 4)),
        (Resizing, torch.randn(2, 1, 32, 24), [2, 3], torch.randn(2, 1, 48, 40)),
        (Computed, torch.randn(2, 7, 4), [1], torch.randn(2, 9, 4)),
        (Selecting, torch.randn(5, 7, 4), [1], torch.randn(4, 6, 4)),
    ],
)
def test_what_export_writes_of_dynamic_sizes_is_loaded(
    module: Any, x: Tensor, axes: list[int], other: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    target = module()
    pt2.export(graph_of(target, x, axes), tmp_path)
    wanted = target(other)
    given = pt2.load(tmp_path, None)([other])
    torch.testing.assert_close(list(given), list(wanted) if isinstance(wanted, tuple) else [wanted])


class Sorting(nn.Module):
    """Computes with an operator that no file may name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (1 << x.shape[1])


def test_export_refuses_what_load_would_refuse(tmp_path: Path) -> None:
    graph = graph_of(Sorting(), torch.randn(2, 7, 4), [1])
    with pytest.raises(ExportError, match=r"formats: 'pt2' cannot be made from this graph: it has '_operator\.lshift'"):
        pt2.export(graph, tmp_path)


def test_a_whole_artifact_is_loaded(folder: Path) -> None:
    torch.testing.assert_close(lq_plugin.load(folder)(batch()), network()(batch()), rtol=0, atol=0.1)
