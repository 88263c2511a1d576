"""What a run sends to the Trainer's loggers when it has ended: figures to each, and to some of them much more.

A logger is known by the names of its classes, so no package is imported that the user does not use, and the loggers of
``lightning.pytorch`` and ``pytorch_lightning`` are the same. All artifacts are sent, so that what a server holds is a
whole folder for ``find_results``: INT8 in three formats is about as large as one FP32 checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lq_plugin.artifacts.layout import place
from lq_plugin.artifacts.onnx import FILE as ONNX
from lq_plugin.errors import require
from lq_plugin.noise import muted
from lq_plugin.printing import figure
from lq_plugin.report import manifest, markdown, run_page
from lq_plugin.report.details import sections
from lq_plugin.report.manifest import Manifest
from lq_plugin.steps import attempt

EXTRA = "loggers"
FOLDER = "quantized"  # in what a logger holds
MODEL = "quantized_model"  # not FOLDER: MLflow would give the files of both for either


@dataclass(frozen=True)
class Published:
    """What is sent.

    Args:
        manifest: of the run.
        folder: where it and the artifacts lie.
        step: of the Trainer.
    """

    manifest: Manifest
    folder: Path
    step: int

    @property
    def report(self) -> Path | None:
        """The report, if the run has one."""
        page = self.folder / run_page.FILE
        return page if page.is_file() else None

    def files(self) -> Iterator[Path]:
        """Yield every file that this run has made; others in the folder may be of earlier runs."""
        pages = (self.folder / manifest.FILE, self.folder / run_page.FILE)
        yield from (page for page in pages if page.is_file())
        for entry in self.manifest.artifacts:
            if entry.path is not None:
                yield from sorted(file for file in (self.folder / entry.path).rglob("*") if file.is_file())


def publish(trainer: Any, made: Manifest, folder: Path) -> None:
    """Send a manifest to each of a Trainer's loggers, with the report and the artifacts where the logger holds files.

    A logger that fails, because it rejects such names or its server is gone, does not end a finished training.

    Args:
        trainer: whose loggers these are; of the process with rank 0.
        made: the manifest.
        folder: where the manifest and the artifacts lie.
    """
    published = Published(made, folder, trainer.global_step)
    for logger in trainer.loggers:
        name = type(logger).__name__
        with muted():
            attempt(f"{name} could not log the figures of the artifacts", partial(_log, logger, published))
            for what, send in senders(logger).items():
                attempt(f"{name} could not take {what}", partial(send, logger, published))


def senders(logger: Any) -> Mapping[str, Callable[[Any, Published], None]]:
    """Return what is sent to a logger besides figures, and how, by the first of its classes that is in the table."""
    return next((SENDERS[kind.__name__] for kind in type(logger).__mro__ if kind.__name__ in SENDERS), {})


def _log(logger: Any, published: Published) -> None:
    """Log the figures of every artifact as ``quantized/<candidate>/<format>/<metric>``."""
    figures = {
        f"quantized/{entry.label}/{name}": value
        for entry in published.manifest.artifacts
        for name, value in entry.figures.items()
        if value is not None
    }
    if figures:
        logger.log_metrics(figures, step=published.step)
        logger.save()


def tags(made: Manifest) -> dict[str, str]:
    """Return what runs are searched by, as texts by their names."""
    chosen = made.chosen
    formats = dict.fromkeys(entry.format for entry in made.artifacts if entry.path is not None)
    found = {
        "selected": made.selected or "none",
        "sqnr_db": "" if chosen is None or chosen.sqnr_db is None else f"{chosen.sqnr_db:.2f}",
        "formats": ", ".join(formats),
        "cpu": made.environment.cpu,
        **{f"version.{package}": version for package, version in made.environment.versions.items()},
    }
    return {f"lq_plugin.{name}": text for name, text in found.items() if text}


def _text_to_tensorboard(logger: Any, published: Published) -> None:
    """Show the tables: TensorBoard has no place for files, and its images are pixels."""
    logger.experiment.add_text("quantized/summary", _summary(published.manifest), published.step)
    for section in sections(published.manifest):
        shown = f"{markdown.table(section.columns, section.rows)}\n\n{markdown.text(section.more)}"
        logger.experiment.add_text(f"quantized/{section.title}", shown, published.step)
    logger.save()


def _curves_to_tensorboard(logger: Any, published: Published) -> None:
    """Plot what operators cost, by their rank, and what the trials of a search dropped, by their number."""
    writer = logger.experiment
    for name, operators in published.manifest.sensitivity.items():
        for rank, operator in enumerate(operators, start=1):
            writer.add_scalar(f"quantized/{name}/share_of_error_by_operator", operator.share, rank)
    for candidate in dict.fromkeys(trial.candidate for trial in published.manifest.trials):
        trials = [trial for trial in published.manifest.trials if trial.candidate == candidate]
        for number, trial in enumerate(trials, start=1):
            writer.add_scalar(f"quantized/{candidate}/int8_share_by_trial", trial.int8_share, number)
            if trial.drop is not None:
                writer.add_scalar(f"quantized/{candidate}/drop_by_trial", trial.drop, number)
    logger.save()


def _summary(made: Manifest) -> str:
    """FP32 and the artifacts as one table."""
    names = [*made.fp32.metrics, "latency_ms", "size_bytes", "sqnr_db"]
    reference = {**made.fp32.metrics, "latency_ms": made.fp32.best, "size_bytes": made.fp32.size_bytes}
    rows = [("FP32", *(figure(reference.get(name), ".6g") for name in names), "")]
    for entry in made.artifacts:
        selected = ", selected" if entry.label == made.selected else ""
        rows.append((entry.label, *(figure(entry.figures.get(name), ".6g") for name in names), entry.status + selected))
    return markdown.table({"": "left"} | dict.fromkeys(names, "right") | {"status": "left"}, rows)


def _files_to_mlflow(logger: Any, published: Published) -> None:
    """Send tags and files."""
    entities = require("mlflow.entities", EXTRA, "MLFlowLogger")
    client, run = logger.experiment, logger.run_id
    client.log_batch(run, tags=[entities.RunTag(*tag) for tag in tags(published.manifest).items()])
    for file in published.files():
        client.log_artifact(run, str(file), _below(file.parent, published.folder))


def _model_to_mlflow(logger: Any, published: Published) -> None:
    """Send an MLflow model of the selected artifact, if it is ONNX, or else of the first ONNX within the budget."""
    judged = [one for one in (published.manifest.chosen, *published.manifest.artifacts) if one is not None]
    entry = next((one for one in judged if one.format == "onnx" and one.status == "ok"), None)
    if entry is None or entry.path is None:
        return
    onnx = require("onnx", "onnx", "An ONNX model in MLflow")
    mlflow = require("mlflow", EXTRA, "MLFlowLogger")
    flavor = require("mlflow.onnx", EXTRA, "An ONNX model in MLflow")
    client, model = logger.experiment, onnx.load(place(published.folder / entry.path, ONNX))
    mlflow.set_tracking_uri(client.tracking_uri)  # another logger may have changed it since
    # Made here, because Model.log would make it in whatever experiment is active, which is not the logger's.
    described = tags(published.manifest) | {"lq_plugin.artifact": entry.label}
    made = client.create_logged_model(logger.experiment_id, MODEL, source_run_id=logger.run_id, tags=described)
    mlflow.models.Model.log(
        None,  # what was the name before version 3
        flavor,
        run_id=logger.run_id,
        model_id=made.model_id,
        step=published.step,
        onnx_model=model,
        signature=_signature(model),
        # Given, because MLflow would start a process to find out, and would look for a GPU in each load.
        pip_requirements=flavor.get_default_pip_requirements(),
        onnx_execution_providers=["CPUExecutionProvider"],
    )


def _signature(model: Any) -> Any:
    """Return the names, types and sizes of a graph's inputs and outputs for MLflow; -1 is any size."""
    helper = require("onnx.helper", "onnx", "An ONNX model in MLflow")
    models = require("mlflow.models", EXTRA, "MLFlowLogger")
    types = require("mlflow.types", EXTRA, "MLFlowLogger")

    def schema(values: Any) -> Any:
        tensors = [(value.name, value.type.tensor_type) for value in values]
        return types.Schema(
            [
                types.TensorSpec(
                    helper.tensor_dtype_to_np_dtype(tensor.elem_type),
                    [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim],
                    name,
                )
                for name, tensor in tensors
            ]
        )

    return models.ModelSignature(schema(model.graph.input), schema(model.graph.output))


def _files_to_wandb(logger: Any, published: Published) -> None:
    """Send one W&B artifact with all files, the report as a page, and what was selected."""
    wandb = require("wandb", EXTRA, "WandbLogger")
    run, kept = (
        logger.experiment,
        wandb.Artifact(f"{FOLDER}-{logger.version}", "model", metadata=tags(published.manifest)),
    )
    for file in published.files():
        kept.add_file(str(file), f"{_below(file.parent, published.folder)}/{file.name}", policy=logger.add_file_policy)
    run.log_artifact(kept)
    run.summary.update(tags(published.manifest))
    if published.report is not None:
        page = wandb.Html(str(published.report), inject=False)  # what it adds, the page's own policy would refuse
        run.log({"quantized/report": page, "trainer/global_step": published.step})


def _below(folder: Path, root: Path) -> str:
    return (Path(FOLDER) / folder.relative_to(root)).as_posix()


SENDERS: Mapping[str, Mapping[str, Callable[[Any, Published], None]]] = {
    "TensorBoardLogger": {"tables": _text_to_tensorboard, "plots": _curves_to_tensorboard},
    "MLFlowLogger": {"the files of the run": _files_to_mlflow, "an ONNX model": _model_to_mlflow},
    "WandbLogger": {"the files of the run": _files_to_wandb},
}
