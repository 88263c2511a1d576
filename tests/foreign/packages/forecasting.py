"""pytorch-forecasting: batches are pairs of a dict and a tuple; models return named tuples."""

import numpy as np
import pandas as pd
from pytorch_forecasting import DeepAR, NHiTS, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.metrics import NormalDistributionLoss, QuantileLoss
from training import fitted, waves

REQUIREMENTS = ["pytorch-forecasting"]
HISTORY, HORIZON = 24, 6


def _series(steps=160):
    time = np.arange(steps)
    frames = [
        pd.DataFrame(
            {
                "time": time,
                "group": str(group),
                "hour": (time % 24).astype(np.float32),
                "value": values,
            }
        )
        for group, values in enumerate(waves(steps=steps))
    ]
    return pd.concat(frames, ignore_index=True)


def _datasets(**options):
    data = _series()
    training = TimeSeriesDataSet(
        data[data.time < 130],
        time_idx="time",
        target="value",
        group_ids=["group"],
        max_encoder_length=HISTORY,
        max_prediction_length=HORIZON,
        time_varying_unknown_reals=["value"],
        **options,
    )
    return training, TimeSeriesDataSet.from_dataset(training, data, min_prediction_idx=130, stop_randomization=True)


def _fit(model, datasets, callbacks, folder):
    training, validation = datasets
    loaders = (
        training.to_dataloader(train=True, batch_size=16, num_workers=0),
        validation.to_dataloader(train=False, batch_size=16, num_workers=0),
    )
    return fitted(model, *loaders, callbacks, folder, limit_train_batches=8, gradient_clip_val=0.1)


def tft(callbacks, folder):
    datasets = _datasets(
        static_categoricals=["group"], time_varying_known_reals=["time", "hour"], min_encoder_length=HISTORY // 2
    )
    model = TemporalFusionTransformer.from_dataset(
        datasets[0], hidden_size=16, attention_head_size=2, hidden_continuous_size=8, loss=QuantileLoss()
    )
    return _fit(model, datasets, callbacks, folder)


def nhits(callbacks, folder):
    datasets = _datasets(time_varying_known_reals=["hour"])
    return _fit(NHiTS.from_dataset(datasets[0], hidden_size=32, loss=QuantileLoss()), datasets, callbacks, folder)


def deepar(callbacks, folder):
    datasets = _datasets(static_categoricals=["group"], time_varying_known_reals=["hour"])
    model = DeepAR.from_dataset(datasets[0], hidden_size=32, rnn_layers=2, loss=NormalDistributionLoss())
    return _fit(model, datasets, callbacks, folder)


MODELS = {"TemporalFusionTransformer": tft, "NHiTS": nhits, "DeepAR": deepar}
