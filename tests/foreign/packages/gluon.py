"""gluonts: estimators make their own Trainer from ``trainer_kwargs``; batches are dicts."""

import pandas as pd
from gluonts.dataset.pandas import PandasDataset
from gluonts.torch import (
    PatchTSTEstimator,
    SimpleFeedForwardEstimator,
    TemporalFusionTransformerEstimator,
    TiDEEstimator,
)
from training import waves

REQUIREMENTS = ["gluonts[torch]"]
TARGET = "model"  # the loss calls the inner model; the LightningModule's own forward is never called
HISTORY, HORIZON = 24, 6


def _series(steps=200):
    index = pd.date_range("2020-01-01", periods=steps, freq="h")
    frames = {
        f"s{group}": pd.DataFrame({"target": values}, index=index) for group, values in enumerate(waves(steps=steps))
    }
    return PandasDataset(frames, target="target", freq="h")


def _fit(estimator, callbacks, folder, **options):
    made = estimator(
        prediction_length=HORIZON,
        context_length=HISTORY,
        batch_size=16,
        num_batches_per_epoch=10,
        trainer_kwargs={
            "max_epochs": 2,
            "accelerator": "cpu",
            "default_root_dir": str(folder),
            "callbacks": callbacks,
            "enable_progress_bar": False,
            "logger": False,
        },
        **options,
    )
    return made.train_model(_series(), validation_data=_series()).trained_net


def _model(estimator, **options):
    return lambda callbacks, folder: _fit(estimator, callbacks, folder, **options)


MODELS = {
    "TiDE": _model(TiDEEstimator, freq="h", encoder_hidden_dim=16, decoder_hidden_dim=16, temporal_hidden_dim=16),
    "SimpleFeedForward": _model(SimpleFeedForwardEstimator, hidden_dimensions=[32, 32]),
    "PatchTST": _model(PatchTSTEstimator, patch_len=8, d_model=16, nhead=2, dim_feedforward=32),
    "TemporalFusionTransformer": _model(TemporalFusionTransformerEstimator, freq="h", hidden_dim=16, num_heads=2),
}
