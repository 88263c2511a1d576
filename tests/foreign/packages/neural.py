"""neuralforecast: models make their own Trainer, from keyword arguments; batches are dicts."""

import pandas as pd
from neuralforecast import NeuralForecast
from neuralforecast.models import GRU, LSTM, NBEATS, NHITS, TFT, DLinear, PatchTST, TiDE
from training import waves

REQUIREMENTS = ["neuralforecast"]
HORIZON = 6


def _series(steps=200):
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "unique_id": f"s{group}",
                    "ds": pd.date_range("2020-01-01", periods=steps, freq="h"),
                    "y": values,
                }
            )
            for group, values in enumerate(waves(steps=steps))
        ]
    )


def _fit(kind, callbacks, folder, **options):
    model = kind(
        h=HORIZON,
        input_size=24,
        max_steps=20,
        val_check_steps=10,
        batch_size=16,
        random_seed=1,
        accelerator="cpu",
        default_root_dir=str(folder),
        callbacks=callbacks,
        enable_progress_bar=False,
        logger=False,
        **options,
    )
    forecast = NeuralForecast(models=[model], freq="h")
    forecast.fit(_series(), val_size=24)
    return forecast.models[0]


def _model(kind, **options):
    return lambda callbacks, folder: _fit(kind, callbacks, folder, **options)


MODELS = {
    "NHITS": _model(NHITS, mlp_units=[[32, 32]] * 3),
    "NBEATS": _model(NBEATS, mlp_units=[[32, 32]] * 3),
    "TFT": _model(TFT, hidden_size=16, n_head=2),
    "PatchTST": _model(PatchTST, hidden_size=16, n_heads=2, encoder_layers=2, linear_hidden_size=32, patch_len=8),
    "LSTM": _model(LSTM, encoder_hidden_size=32, decoder_hidden_size=32),
    "GRU": _model(GRU, encoder_hidden_size=32, decoder_hidden_size=32),
    "DLinear": _model(DLinear),
    "TiDE": _model(TiDE, hidden_size=32, decoder_output_dim=8),
}
