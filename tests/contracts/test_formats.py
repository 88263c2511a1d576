"""What every format must do; each format states its name and what is special about it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin import Artifact, Calibration, Candidate, Scheme
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.artifacts.writing import export_one
from lq_plugin.errors import ArtifactError, CaptureError, ConfigError, LqError
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.runtimes import RUNTIMES
from lq_plugin.scheme import METHODS, as_dict

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from target import Target, inputs  # noqa: E402

NEW_PROCESS = """
import sys, torch, lq_plugin
needs_the_class = sys.argv[4] == "True"
if needs_the_class:
    sys.path.insert(0, {here!r})
    from target import Target
calls = torch.load(sys.argv[2], weights_only=True)
module = lq_plugin.load(sys.argv[1], threads=1, factory=Target if needs_the_class else None)
with torch.no_grad():
    torch.save([module(*args, **kwargs) for args, kwargs in calls], sys.argv[3])
known = [name for name in sys.modules if "test_formats" in name or name == "target" or name.startswith("tests")]
assert known == ["target"] * needs_the_class
assert not {{"lightning", "torchao"}} & set(sys.modules)
"""
WITHOUT_US = """
import runpy, sys
sys.modules.update(dict.fromkeys({blocked!r}))  # an import of these fails
runpy.run_path("run.py", run_name="__main__")
assert not [name for name in sys.modules if name.startswith(("lq_plugin.", "lightning"))]
"""
BLOCKED = """
import sys
class Finder:
    finders = sys.meta_path[:]
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {blocked!r}:
            found = (finder.find_spec(name, path, target) for finder in self.finders)
            return next((spec for spec in found if spec is not None), None)
sys.meta_path[:] = [Finder()]
import lq_plugin
from lq_plugin.errors import MissingExtraError
for attempt in (lambda: lq_plugin.ArtifactExport([{format!r}]), lambda: lq_plugin.load({path!r}, factory={factory})):
    try:
        attempt()
    except MissingExtraError as error:
        print(error)
    else:
        print("fine")
"""


@pytest.fixture(scope="module")
def target() -> Target:
    torch.manual_seed(0)
    return Target().eval()


@pytest.fixture(scope="module")
def candidates(target: Target) -> dict[str, Candidate]:
    batches = [(inputs(8, seed),) for seed in range(4)]
    return {method: lq_plugin.quantize(target, batches, Scheme(method, algorithms=())) for method in METHODS}


def broken(candidate: Any) -> Candidate:
    """Something that no format can be made of."""
    if candidate.scheme.method == "dynamic":
        return dataclasses.replace(candidate, scheme=Scheme("dynamic", skip=["head"]))
    return dataclasses.replace(candidate, calibration=Calibration({}, candidate.calibration.provenance))


def described(value: Any) -> Any:
    """The structure of an output, with the shape of every tensor."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return type(value), [(key, described(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [described(item) for item in value]
    return value


def signed_again(folder: Path) -> None:
    """Make the checksums of a changed artifact right again, as somebody with bad intentions would."""
    content = json.loads((folder / "artifact.json").read_text())
    del content["sha256"]
    content["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in content["files"]}
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "artifact.json").write_text(json.dumps(content))


def members(file: Path) -> list[bytes]:
    """The bytes in a file, those in an archive unpacked."""
    if not zipfile.is_zipfile(file):
        return [file.read_bytes()]
    with zipfile.ZipFile(file) as archive:
        return [archive.read(member) for member in archive.infolist()]


class FormatContract:
    """The assertions; a subclass names its format and the method of its candidates."""

    format: str
    method = "static"
    packages: tuple[str, ...] = ()
    quantized = frozenset({"conv2d", "linear"})
    needs_the_class = False

    @pytest.fixture(scope="class")
    @classmethod
    def candidate(cls, candidates: dict[str, Candidate]) -> Candidate:
        return candidates[cls.method]

    def load(self, path: Path, **options: Any) -> nn.Module:
        return lq_plugin.load(path, **options, **({"factory": Target} if self.needs_the_class else {}))

    @pytest.fixture(scope="class")
    @classmethod
    def artifact(cls, candidate: Candidate, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
        folder = tmp_path_factory.mktemp(cls.format)
        return lq_plugin.export(candidate, folder, [cls.format])[cls.format]

    @pytest.fixture
    def copied(self, artifact: Artifact, tmp_path: Path) -> Path:
        return Path(shutil.copytree(artifact.path, tmp_path / "copy"))

    def test_the_suite_knows_what_the_format_needs(self) -> None:
        assert set(self.packages) == set(FORMATS[self.format].packages)

    def test_a_new_process_gives_the_same_outputs(self, artifact: Artifact, tmp_path: Path) -> None:
        calls = [((inputs(batch, batch),), {}) for batch in (1, 3, 16)]
        torch.save(calls, tmp_path / "calls.pt")
        code = NEW_PROCESS.format(here=str(HERE))
        command = [sys.executable, "-c", code, artifact.path, tmp_path / "calls.pt", tmp_path / "results.pt"]
        command.append(str(self.needs_the_class))
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        module = self.load(artifact.path, threads=1)
        results = torch.load(tmp_path / "results.pt", weights_only=True)
        for ((batch,), _), result in zip(calls, results, strict=True):
            assert described(result) == described(module(batch))
            torch.testing.assert_close(result, module(batch), rtol=0, atol=1e-6)

    def test_the_outputs_are_close_to_the_targets_and_of_its_structure(
        self, artifact: Artifact, target: Target
    ) -> None:
        module, sqnr = self.load(artifact.path), SignalToQuantizationNoise()
        with torch.no_grad():
            for batch in (1, 5, 8):
                given, wanted = module(inputs(batch, 9)), target(inputs(batch, 9))
                assert described(given) == described(wanted)
                sqnr.update(given, wanted)
        assert 20 < sqnr.compute().item() < 80

    def test_what_can_be_quantized_is_quantized_and_the_rest_is_listed(self, artifact: Artifact) -> None:
        quantized, stays = ({op["op"].lower() for op in ops} for ops in (artifact.quantized_ops, artifact.float_ops))
        assert self.quantized <= quantized
        assert {"conv2d", "linear"} - self.quantized <= stays
        assert all(op["reason"] for op in artifact.float_ops)

    def test_it_is_called_like_its_target(self, artifact: Artifact) -> None:
        module, batch = self.load(artifact.path), inputs(4)
        expected = module(batch)["logits"]
        other_order = dict(reversed(list(batch.items())))
        for result in (
            module(batch, "plain", 2.0),
            module(batch=batch),
            module(batch, gain=2.0, mode="plain"),
            module(other_order),
            module(batch, bias=None),
        ):
            assert torch.equal(result["logits"], expected)

    def test_several_threads_may_call_it_at_once(self, artifact: Artifact) -> None:
        module, batches = self.load(artifact.path, threads=1), [inputs(size, size) for size in range(1, 5)]
        expected = [module(batch)["logits"].clone() for batch in batches]
        with ThreadPoolExecutor(len(batches)) as pool:
            turns = [turn % len(batches) for turn in range(200)]
            results = pool.map(lambda turn: module(batches[turn])["logits"], turns)
            assert all(torch.equal(result, expected[turn]) for turn, result in zip(turns, results, strict=True))

    def test_hooks_see_a_call(self, artifact: Artifact) -> None:
        module, seen = self.load(artifact.path), list[str]()
        module.register_forward_pre_hook(lambda *_: seen.append("before"))
        module.register_forward_hook(lambda *_: seen.append("after"))
        module(inputs(4))
        assert seen == ["before", "after"]

    def test_a_changed_file_is_refused(self, artifact: Artifact, copied: Path) -> None:
        for name in artifact.files:
            original = (copied / name).read_bytes()
            middle = len(original) // 2
            changed = original[:middle] + bytes([original[middle] ^ 1]) + original[middle + 1 :]
            for content in (changed, original[:-1], original + b"\0", b""):
                (copied / name).write_bytes(content)
                with pytest.raises(ArtifactError, match=f"{re.escape(name)}' was changed or truncated after export"):
                    self.load(copied)
            (copied / name).unlink()
            with pytest.raises(ArtifactError, match=f"{re.escape(name)}' is missing. Copy the whole folder"):
                self.load(copied)
            (copied / name).write_bytes(original)
        assert self.load(copied)

    def test_a_changed_description_is_refused(self, copied: Path) -> None:
        description = copied / "artifact.json"
        original = description.read_text()
        description.write_text(original.replace(f'"candidate": "{self.method}"', '"candidate": "better"'))
        with pytest.raises(ArtifactError, match=r"artifact.json' was changed after export"):
            self.load(copied)
        for broken in (original[:-20], "[]", "{}"):
            description.write_text(broken)
            with pytest.raises(ArtifactError, match=r"artifact.json' (cannot be read|was changed)"):
                self.load(copied)
        description.unlink()
        with pytest.raises(ArtifactError, match=r"holds no artifact \(artifact.json is missing\)"):
            self.load(copied)

    def test_a_failing_export_leaves_the_earlier_artifact_and_nothing_else(
        self, candidate: Candidate, artifact: Artifact, tmp_path: Path
    ) -> None:
        shutil.copytree(artifact.path, tmp_path / self.format)
        before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        with pytest.raises(LqError, match=r"no statistics for|nothing in it can be quantized"):
            export_one(broken(candidate), tmp_path / self.format, self.format)
        assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
        assert [entry.name for entry in tmp_path.iterdir()] == [self.format]

    def test_an_export_replaces_the_earlier_artifact_by_the_same_bytes(
        self, candidate: Candidate, artifact: Artifact, copied: Path
    ) -> None:
        (copied / "stray").write_text("of the earlier one")
        copied.rename(copied.parent / self.format)
        made = lq_plugin.export(candidate, copied.parent, [self.format])[self.format]
        beside = {"artifact.json", "README.md"} | (set() if self.needs_the_class else {"run.py"})
        assert {file.name for file in made.path.iterdir()} == {*made.files, *beside}
        assert made.size_bytes == sum((made.path / name).stat().st_size for name in made.files)
        for file in made.path.iterdir():
            assert file.read_bytes() == (artifact.path / file.name).read_bytes(), file.name
        assert self.load(made.path)

    def test_no_file_names_a_place_of_this_machine(self, artifact: Artifact) -> None:
        places = [str(artifact.path.parent), str(Path(__file__).parents[2]), str(Path.home()), sys.prefix, "/tmp/"]
        for file in artifact.path.iterdir():
            for content in members(file):
                assert not [place for place in places if place.encode() in content]
                assert set(re.findall(rb"[\w/]+\.py\b", content)) <= {b"run.py"}
                assert b"site-packages" not in content

    def test_a_missing_package_is_named_with_its_extra(self, artifact: Artifact, tmp_path: Path) -> None:
        blocked = set(self.packages) or {"onnx"}
        factory = (
            f"__import__('runpy').run_path({str(HERE / 'target.py')!r})['Target']" if self.needs_the_class else None
        )
        code = BLOCKED.format(blocked=blocked, format=self.format, path=str(artifact.path), factory=factory)
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        made, loaded = done.stdout.splitlines()
        expected = f"pip install 'lq_plugin[{FORMATS[self.format].extra}]'" if self.packages else "fine"
        assert expected in made
        assert expected in loaded

    def test_a_missing_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="holds no artifact"):
            self.load(tmp_path / "nowhere" / self.format)


class GraphContract(FormatContract):
    """What a format must do that holds a graph and knows the call it was captured with."""

    @pytest.mark.parametrize(
        ("call", "said"),
        [
            (lambda module, batch: module(batch, "other"), "argument mode: given 'other'.*constant 'plain'"),
            (lambda module, batch: module(batch, gain=3.0), "argument gain: given 3.0.*constant 2.0"),
            (lambda module, batch: module(batch, bias=torch.zeros(4)), "argument bias: given tensor.*constant None"),
            (lambda module, batch: module(), "missing a required argument: 'batch'"),
            (lambda module, batch: module(batch, extra=1), "unexpected keyword argument 'extra'"),
            (lambda module, batch: module(batch["image"]), "argument batch: expected a dict .*'image', 'offset'"),
            (
                lambda module, batch: module({"image": batch["image"]}),
                r"expected a dict with the keys .* got \['image'\]",
            ),
            (lambda module, batch: module(batch | {"image": batch["image"].double()}), "expected float32.*got float64"),
            (lambda module, batch: module(batch | {"image": torch.zeros(4, 2, 8, 8)}), r"shape \['any', 1, 8, 8\]"),
        ],
    )
    def test_another_call_is_refused(
        self, call: Callable[[nn.Module, dict[str, Tensor]], Any], said: str, artifact: Artifact
    ) -> None:
        with pytest.raises(ArtifactError, match=said):
            call(self.load(artifact.path), inputs(4))

    def test_its_script_needs_nothing_but_the_runtime(self, artifact: Artifact, tmp_path: Path) -> None:
        np.savez(tmp_path / "inputs.npz", **{f"batch.{name}": value.numpy() for name, value in inputs(4).items()})
        blocked = ("lq_plugin", *(() if self.format == "pt2" else ("torch",)))
        arguments = [tmp_path / "inputs.npz", "--output", tmp_path / "outputs.npz"]
        command = [sys.executable, "-I", "-c", WITHOUT_US.format(blocked=blocked), *arguments]
        done = subprocess.run(command, cwd=artifact.path, capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stderr) == (0, "")
        result = self.load(artifact.path, threads=1)(inputs(4))
        (first, (second, _)), more = result["parts"], result["more"]
        wanted = {"logits": result["logits"], "parts.0": first, "parts.1.0": second}
        wanted |= {"more.second": more["second"], "more.first": more["first"]}
        with np.load(tmp_path / "outputs.npz") as outputs:
            assert list(outputs) == [f"output.{name}" for name in wanted]
            for name, value in wanted.items():
                np.testing.assert_allclose(outputs[f"output.{name}"], value.numpy(), rtol=0, atol=1e-5)
        assert "'output.more.first': int64 [4]" in done.stdout.splitlines()

    def test_the_code_of_its_readme_runs(self, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(artifact.path)
        ours, bare = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
        made: list[dict[str, Any]] = [{}, {}]
        for code, names in zip((ours, bare), made, strict=True):
            exec(code, names)
        assert len(made[1]["outputs"]) == 5
        np.testing.assert_allclose(made[1]["outputs"][0], made[0]["output"]["logits"].numpy(), rtol=0, atol=1e-5)


class TestOnnx(GraphContract):
    format = "onnx"
    packages = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")

    def test_the_model_says_what_made_it(self, artifact: Artifact, candidate: Candidate) -> None:
        model = onnx.load(artifact.path / "model.onnx")
        assert (model.producer_name, model.producer_version) == ("lq_plugin", version("lq_plugin"))
        said = onnxruntime.InferenceSession(artifact.path / "model.onnx").get_modelmeta().custom_metadata_map
        assert said == {each.key: each.value for each in model.metadata_props}
        assert json.loads(said["lq_plugin.scheme"]) == json.loads(json.dumps(as_dict(candidate.scheme)))
        assert said["lq_plugin.weights"] == candidate.provenance.digest


class TestOpenVino(GraphContract):
    format = "openvino"
    packages = ("onnx", "onnx_ir", "onnxscript", "openvino")


class Dynamic:
    """Candidates of the dynamic method."""

    method = "dynamic"
    quantized = frozenset({"linear"})


class TestDynamicOnnx(Dynamic, TestOnnx):
    test_a_missing_package_is_named_with_its_extra = None  # the packages are those of the static artifact
    test_its_script_needs_nothing_but_the_runtime = None  # it is the same script


class TestDynamicOpenVino(Dynamic, TestOpenVino):
    test_a_missing_package_is_named_with_its_extra = None
    test_its_script_needs_nothing_but_the_runtime = None


class TestTorch(Dynamic, FormatContract):
    format = "torch"
    needs_the_class = True

    def test_a_factory_is_asked_for(self, artifact: Artifact) -> None:
        with pytest.raises(ConfigError, match="factory: the format 'torch' holds INT8 layers without the code"):
            lq_plugin.load(artifact.path)

    def test_it_is_always_made(self, candidate: Candidate, tmp_path: Path) -> None:
        assert lq_plugin.export(candidate, tmp_path, ["openvino"]).keys() == {"openvino", "torch"}


class TestPt2(GraphContract):
    format = "pt2"

    @pytest.fixture
    def rewritten(self, copied: Path) -> Callable[..., Path]:
        """Write the archive anew with changed or added members, and make the checksums right."""

        def rewrite(changed: dict[str, bytes], *, root: str = "archive/", only: bool = False) -> Path:
            file = copied / "model.pt2"
            with zipfile.ZipFile(file) as archive:
                content = {} if only else {member.filename: archive.read(member) for member in archive.infolist()}
            content = {
                name: data for name, data in content.items() if name.lower() not in {root + n.lower() for n in changed}
            }
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, data in (content | {root + name: data for name, data in changed.items()}).items():
                    archive.writestr(name, data)
            signed_again(copied)
            return copied

        return rewrite

    @pytest.fixture
    def marker(self, tmp_path: Path) -> Path:
        """The file that a payload makes when it is run."""
        return tmp_path / "executed"

    @pytest.fixture
    def attacks(self, artifact: Artifact, marker: Path) -> dict[str, dict[str, bytes]]:
        with zipfile.ZipFile(artifact.path / "model.pt2") as archive:
            weights = json.loads(archive.read("archive/data/weights/model_weights_config.json"))
            constants = json.loads(archive.read("archive/data/constants/model_constants_config.json"))
            graph = archive.read("archive/models/model.json").decode()
        payload = pickled(marker)
        name, entry = next(iter(weights["config"].items()))
        meta = entry["tensor_meta"]

        def constant(path_name: str, payload: bytes) -> dict[str, bytes]:
            entry = {"path_name": path_name, "is_param": False, "use_pickle": True, "tensor_meta": meta}
            config = {"config": constants["config"] | {"planted": entry}}
            return {
                "data/constants/model_constants_config.json": json.dumps(config).encode(),
                f"data/constants/{path_name}": payload,
            }

        expression = json.dumps(f"__import__('os').mkdir({str(marker)!r}) or Integer(3)")
        return {
            "pickled weight": {
                "data/weights/model_weights_config.json": json.dumps(
                    {"config": weights["config"] | {name: entry | {"use_pickle": True}}}
                ).encode(),
                f"data/weights/{entry['path_name']}": payload,
            },
            "sample inputs": {"data/sample_inputs/model.pt": payload},
            "sample inputs in capitals": {"data/sample_inputs/MODEL.PT": payload},
            "weights of the old form": {"data/weights/model.pt": payload},
            "constants of the old form": {"data/constants/model.pt": payload},
            "pickled constant": constant("tensor_0", payload),
            "custom object": constant("opaque_obj_0", pickle.dumps(Payload(marker))),
            "expression": {
                "models/model.json": re.sub(
                    r'"expr_str": *"[^"]*"', lambda _: f'"expr_str": {expression}', graph, count=1
                ).encode()
            },
        }

    @pytest.mark.parametrize(
        ("attack", "said"),
        [
            ("pickled weight", "as a pickled or custom object"),
            ("sample inputs", "holds the member 'data/sample_inputs/model.pt'"),
            ("sample inputs in capitals", "holds the member 'data/sample_inputs/MODEL.PT'"),
            ("weights of the old form", "holds the member 'data/weights/model.pt'"),
            ("constants of the old form", "holds the member 'data/constants/model.pt'"),
            ("pickled constant", "stores 'planted' .* as a pickled or custom object"),
            ("custom object", "holds the member 'data/constants/opaque_obj_0'|as a pickled or custom object"),
            ("expression", "as expr_str, which could run code"),
        ],
    )
    @pytest.mark.filterwarnings("ignore")
    def test_planted_code_is_refused_and_not_executed(
        self,
        attack: str,
        said: str,
        attacks: dict[str, dict[str, bytes]],
        rewritten: Callable[..., Path],
        marker: Path,
    ) -> None:
        folder = rewritten(attacks[attack])
        with contextlib.suppress(Exception):  # what was planted need not be a whole model
            torch.export.load(folder / "model.pt2")
        assert marker.exists(), "torch itself does not execute this payload, so refusing it shows nothing"
        marker.rmdir()
        with pytest.raises(ArtifactError, match=said):
            lq_plugin.load(folder)
        assert not marker.exists()

    def test_an_archive_of_the_old_form_is_refused(self, rewritten: Callable[..., Path], marker: Path) -> None:
        old = {"version": b"8.14", "serialized_exported_program.json": b"{}"}
        old |= {f"serialized_{part}.pt": pickled(marker) for part in ("state_dict", "constants", "example_inputs")}
        with pytest.raises(ArtifactError, match="holds the member 'version'"):
            lq_plugin.load(rewritten(old, root="", only=True))
        assert not marker.exists()

    @pytest.mark.parametrize("member", ["data/aotinductor/model/model.so", "extra/notes", "models/second.json"])
    def test_a_member_that_export_never_writes_is_refused(self, member: str, rewritten: Callable[..., Path]) -> None:
        with pytest.raises(ArtifactError, match=f"holds the member '{member}'"):
            lq_plugin.load(rewritten({member: b"{}"}))

    def test_an_operator_outside_of_torchs_own_is_refused(
        self, artifact: Artifact, rewritten: Callable[..., Path]
    ) -> None:
        with zipfile.ZipFile(artifact.path / "model.pt2") as archive:
            graph = archive.read("archive/models/model.json").replace(
                b"torch.ops.aten.relu.default", b"torch.os.system"
            )
        with pytest.raises(ArtifactError, match=r"has 'torch\.os\.system' as target"):
            lq_plugin.load(rewritten({"models/model.json": graph}))

    def test_a_rewritten_archive_without_changes_is_loaded(self, rewritten: Callable[..., Path]) -> None:
        assert lq_plugin.load(rewritten({}))(inputs(2))

    def test_the_users_batch_is_not_stored(self, artifact: Artifact) -> None:
        with zipfile.ZipFile(artifact.path / "model.pt2") as archive:
            assert archive.read("archive/data/sample_inputs/model.pt") == b""


@pytest.mark.parametrize("method", METHODS)
def test_quantizing_and_exporting_leave_the_random_state(method: str, tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.LSTM(4, 6, batch_first=True), First(), nn.Linear(6, 2)), torch.randn(3, 5, 4)
    state = torch.get_rng_state()
    artifacts = lq_plugin.export(lq_plugin.quantize(model, [x], method), tmp_path)
    for artifact in artifacts.values():
        lq_plugin.load(artifact.path, factory=lambda: model)(x)
    assert torch.equal(torch.get_rng_state(), state)


class First(nn.Module):
    def forward(self, x: tuple[Tensor, Any]) -> Tensor:
        return x[0]


class Branching(nn.Module):
    """Cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x if x.sum() > 0 else -x)


def test_a_format_that_fails_does_not_cost_the_others(tmp_path: Path) -> None:
    candidate = lq_plugin.quantize(Branching(), [torch.ones(2, 4)], "dynamic")
    with pytest.raises(CaptureError, match=r"cannot be captured by torch\.export") as failed:
        lq_plugin.export(candidate, tmp_path)
    assert failed.value.__notes__ == [f"Still exported to {str(tmp_path)!r}: torch."]
    assert lq_plugin.load(tmp_path / "torch", factory=Branching)(torch.ones(2, 4)).shape == (2, 4)


def test_every_format_has_a_contract_for_every_method_that_it_takes() -> None:
    contracts = [made for made in globals().values() if isinstance(made, type) and issubclass(made, FormatContract)]
    covered = {(made.format, made.method) for made in contracts if hasattr(made, "format")}
    taken = {(name, method) for name in FORMATS for method in METHODS if method not in FORMATS[name].refuses}
    assert covered == taken


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def pickled(marker: Path) -> bytes:
    """A payload that makes ``marker`` when it is unpickled, in the form that torch writes."""
    buffer = io.BytesIO()
    torch.save(Payload(marker), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(("method", "format_name"), [("dynamic", "pt2"), ("static", "torch")])
def test_a_format_that_a_method_cannot_have_is_left_out_with_a_warning(
    method: str, format_name: str, candidates: dict[str, Candidate], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = lq_plugin.export(candidates[method], tmp_path, [format_name, "onnx"])
    assert made.keys() == {"onnx", *(["torch"] if method == "dynamic" else [])}
    assert f"{method}/{format_name} is unsupported: {FORMATS[format_name].refuses[method]}" in caplog.text


def test_nothing_but_such_formats_is_an_error(candidates: dict[str, Candidate], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"formats: \['torch'\] cannot be made from candidate 'static': .*'pt2' holds it"
    ):
        lq_plugin.export(candidates["static"], tmp_path, ["torch"])


def test_every_runtime_of_a_format_has_its_record() -> None:
    assert {made.runtime for made in FORMATS.values()} == RUNTIMES.keys()
