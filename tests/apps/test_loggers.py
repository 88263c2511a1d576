"""What loggers hold after a job, read as their users read it; every store lies in a temporary folder."""

from __future__ import annotations

import csv
import json
import logging
import struct
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from damage.manifests import good
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from lq_plugin.apps import loggers
from lq_plugin.apps.train import train
from lq_plugin.callbacks.publishing import publish
from lq_plugin.checksums import of_file
from lq_plugin.report import manifest
from lq_plugin.report.manifest import Manifest

INSTALLED = [name for name in ("tensorboard", "mlflow", "wandb") if find_spec(name)]
TINY = ("model._target_=tiny.Tiny", "data._target_=tiny.Images", "algorithms=none", "callbacks.evaluation.latency=null")
QUICK = (*TINY, "callbacks.evaluation.budget.max_drop=1", "trainer.max_epochs=1", "trainer.log_every_n_steps=1")
LABEL = "static/onnx"


@dataclass(frozen=True)
class Job:
    """A job with every logger that is installed."""

    folder: Path
    store: str
    printed: str

    @property
    def quantized(self) -> Path:
        return self.folder / "quantized"

    @property
    def manifest(self) -> Manifest:
        return manifest.read(self.quantized / manifest.FILE)

    def figures(self) -> dict[str, float]:
        """What every logger has to hold."""
        (entry,) = self.manifest.artifacts
        values = {**entry.metrics, "size_bytes": entry.size_bytes, "sqnr_db": entry.sqnr_db}
        assert "val/acc" in values
        return {f"quantized/{LABEL}/{name}": float(value) for name, value in values.items() if value is not None}

    def files(self) -> set[str]:
        """What loggers with files have to hold."""
        return {file.relative_to(self.folder).as_posix() for file in self.quantized.rglob("*") if file.is_file()}


def composed(folder: Path, *overrides: str) -> DictConfig:
    with initialize_config_module("lq_plugin.conf", version_base="1.3"):
        return compose("train", [*overrides, f"paths.output_dir={folder}"])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("loggers")
    (folder / "job").mkdir()
    store = (folder / "store").as_uri()  # a folder of files: making MLflow's database takes 2.7 s
    places = {f"WANDB_{kind}_DIR": str(folder / "of_wandb") for kind in ("DATA", "CACHE", "CONFIG")}
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(StringIO()) as printed:
        patch.chdir(folder)
        for name, value in {**places, "MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_FILE_STORE": "true"}.items():
            patch.setenv(name, value)
        train(
            composed(
                folder / "job", *QUICK, "fit.reuse=false", "export=onnx", f"logger=[{','.join(['csv', *INSTALLED])}]"
            )
        )
        loggers.made(OmegaConf.create())  # as the next job of this process does, which ends W&B's run
        yield Job(folder / "job", store, printed.getvalue())


def scalars(folder: Path) -> dict[str, list[float]]:
    """Every curve in TensorBoard's event files, as TensorBoard reads them."""
    found = events(folder)
    return {tag: [event.value for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(folder)).Reload()


def last(curves: dict[str, list[float]]) -> dict[str, float]:
    return {tag: values[-1] for tag, values in curves.items() if tag.startswith("quantized/")}


def texts(folder: Path) -> str:
    found = events(folder)
    tags = found.Tags()["tensors"]
    return "\n".join(event.tensor_proto.string_val[0].decode() for tag in tags for event in found.Tensors(tag))


def test_csv_holds_the_figures(job: Job) -> None:
    rows = list(csv.DictReader((job.folder / "metrics.csv").read_text().splitlines()))
    logged = {name: float(text) for name, text in rows[-1].items() if name.startswith("quantized/")}
    assert logged == pytest.approx(job.figures())


def test_tensorboard_holds_the_figures_and_the_summary(job: Job) -> None:
    assert last(scalars(job.folder / "tensorboard")) == pytest.approx(job.figures())  # float32
    said = texts(job.folder / "tensorboard")
    assert "| FP32 | " in said
    assert f"| {LABEL} | " in said


def test_tensorboard_holds_the_tables_and_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    (tmp_path / "manifest.json").write_text(json.dumps(good()))
    made = manifest.read(tmp_path / "manifest.json")
    trainer = SimpleNamespace(loggers=[TensorBoardLogger(tmp_path, "", "")], global_step=3)
    publish(trainer, made, tmp_path)
    curves, said = scalars(tmp_path), texts(tmp_path)
    for name, operators in made.sensitivity.items():
        shares = curves[f"quantized/{name}/share_of_error_by_operator"]
        assert shares == pytest.approx([operator.share for operator in operators])
        assert all(operator.name in said for operator in operators)
    shares = [share for tag, values in curves.items() if tag.endswith("/int8_share_by_trial") for share in values]
    assert shares == pytest.approx([trial.int8_share for trial in made.trials])
    assert made.sensitivity
    assert made.trials


@pytest.mark.filterwarnings("ignore:.*Any type hint", "ignore::DeprecationWarning")  # MLflow reading its own store
def test_mlflow_holds_tags_files_and_a_model(job: Job) -> None:
    mlflow, tracking = pytest.importorskip("mlflow"), pytest.importorskip("mlflow.tracking")
    ort = pytest.importorskip("onnxruntime")
    client = tracking.MlflowClient(job.store)
    (experiment,) = client.search_experiments(filter_string="name = 'lightning_logs'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == str(job.folder)
    assert run.info.status == "FINISHED"
    assert {n: v for n, v in run.data.metrics.items() if n.startswith("quantized/")} == job.figures()
    assert run.data.tags["lq_plugin.selected"] == "none"
    assert run.data.tags["lq_plugin.formats"].split(", ")[0] == "onnx"
    assert run.data.tags["lq_plugin.version.torch"] == job.manifest.environment.versions["torch"]

    mlflow.set_tracking_uri(job.store)
    kept = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="quantized"))
    assert {f"quantized/{file.relative_to(kept)}" for file in kept.rglob("*") if file.is_file()} == job.files()
    sent = manifest.read(kept / "manifest.json")
    for entry in sent.artifacts:
        assert {name: of_file(kept / str(entry.path) / name) for name in entry.sha256} == entry.sha256

    (model,) = client.search_logged_models([experiment.experiment_id])
    assert model.source_run_id == run.info.run_id
    loaded = mlflow.pyfunc.load_model(model.model_uri)
    (given,) = loaded.metadata.signature.inputs.inputs
    assert (given.type, given.shape[1:]) == (np.dtype("float32"), (1, tiny.SIDE, tiny.SIDE))
    batch = tiny.images(4).tensors[0].numpy()
    session = ort.InferenceSession(job.quantized / LABEL / "model.onnx")
    (expected,) = session.run(None, {session.get_inputs()[0].name: batch})
    (answer,) = loaded.predict({given.name: batch}).values()
    np.testing.assert_array_equal(answer, expected)


def records(file: Path) -> Iterator[Any]:
    """The records of a run that W&B has not sent yet: a LevelDB log of protocol buffers behind seven bytes."""
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, at, whole = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # the end of a block, too short for a header
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield proto.Record.FromString(whole)
            whole = b""


def test_wandb_holds_the_figures_the_report_and_all_files(job: Job) -> None:
    pytest.importorskip("wandb")
    (file,) = (job.folder / "wandb").glob("offline-run-*/run-*.wandb")
    found = list(records(file))
    logged: dict[str, Any] = {}
    for record in found:
        items = record.history.item if record.WhichOneof("record_type") == "history" else ()
        logged |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
    figures = job.figures()
    assert {name: logged[name] for name in figures} == pytest.approx(figures)
    page = file.parent / "files" / logged["quantized/report/path"]
    assert page.read_bytes() == (job.quantized / "report.html").read_bytes()
    (kept,) = (record.artifact for record in found if record.WhichOneof("record_type") == "artifact")
    assert {entry.path for entry in kept.manifest.contents} == job.files()
    assert all(Path(entry.local_path).is_file() for entry in kept.manifest.contents)  # which wandb sync reads
    assert json.loads(kept.metadata)["lq_plugin.formats"].startswith("onnx")
    (ended,) = (record.exit for record in found if record.WhichOneof("record_type") == "exit")
    assert ended.exit_code == 0


def test_nothing_is_printed_that_no_user_can_act_on(job: Job) -> None:
    for line in filter(None, job.printed.splitlines()):
        assert line.startswith(("wandb: W&B syncing is set", "wandb: Run data is saved", "wandb: View this run")), line


def test_a_logger_that_fails_stops_neither_its_other_sends_nor_other_loggers(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import MLFlowLogger
    from pytorch_lightning.loggers import TensorBoardLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store, full = (tmp_path / "store").as_uri(), tmp_path / "full"
    full.write_text("a file, where MLflow wants a folder")
    failing = MLFlowLogger("failing", tracking_uri=store, artifact_location=str(full / "artifacts"))
    working = MLFlowLogger("working", tracking_uri=store)
    board = TensorBoardLogger(str(tmp_path), "board", "")  # of the other namespace
    with caplog.at_level(logging.ERROR, "lq_plugin"):
        publish(SimpleNamespace(loggers=[failing, working, board], global_step=3), job.manifest, job.quantized)
    figures = job.figures()
    said = [record.getMessage() for record in caplog.records if record.name == "lq_plugin"]
    assert [text.partition(". ")[0] for text in said] == [
        "MLFlowLogger could not take the files of the run",
        "MLFlowLogger could not take an ONNX model",
    ]
    client = working.experiment
    for used in (failing, working):
        assert client.get_run(used.run_id).data.metrics == pytest.approx(figures)
        assert client.get_run(used.run_id).data.tags["lq_plugin.formats"] == "onnx"
    kept = Path(client.download_artifacts(working.run_id, "quantized"))
    assert {f"quantized/{file.relative_to(kept)}" for file in kept.rglob("*") if file.is_file()} == job.files()
    (model,) = client.search_logged_models([working.experiment_id])
    assert model.status == "READY"
    assert last(scalars(tmp_path / "board")) == pytest.approx(figures)
    assert "| static/onnx | " in texts(tmp_path / "board")


@pytest.mark.parametrize("section", [{}, {"csv": None}])  # logger=none, logger.csv=null
def test_no_logger_is_none_and_not_the_trainers_default(section: Any) -> None:
    assert loggers.made(OmegaConf.create(section)) is False


def test_a_users_own_group_may_hold_one_logger_without_a_name(tmp_path: Path) -> None:
    section = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path), "name": "", "version": ""}
    made = loggers.made(OmegaConf.create(section))
    assert isinstance(made, list)
    assert [Path(logger.log_dir) for logger in made] == [tmp_path]
