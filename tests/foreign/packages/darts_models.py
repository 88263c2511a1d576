"""darts: models make their own Trainer from ``pl_trainer_kwargs``; batches are tuples of series and covariates."""

import numpy as np
from darts import TimeSeries
from darts.models import NBEATSModel, RNNModel, TCNModel, TiDEModel, TransformerModel

REQUIREMENTS = ["darts"]
HISTORY, HORIZON = 24, 6


def _series(groups=3, steps=160):
    noise, time = np.random.default_rng(0), np.arange(steps)
    return [
        TimeSeries.from_values((np.sin(time / 4 + group) + noise.normal(0, 0.1, steps)).astype(np.float32)[:, None])
        for group in range(groups)
    ]


def _fit(kind, callbacks, folder, **options):
    model = kind(
        input_chunk_length=HISTORY,
        n_epochs=2,
        batch_size=16,
        random_state=1,
        work_dir=str(folder),
        pl_trainer_kwargs={
            "accelerator": "cpu",
            "callbacks": callbacks,
            "default_root_dir": str(folder),
            "enable_progress_bar": False,
            "logger": False,
        },
        **options,
    )
    series = _series()
    model.fit([one[:120] for one in series], val_series=[one[90:] for one in series])
    return model.model


def _model(kind, **options):
    return lambda callbacks, folder: _fit(kind, callbacks, folder, **options)


MODELS = {
    "NBEATS": _model(NBEATSModel, output_chunk_length=HORIZON, num_stacks=3, num_layers=2, layer_widths=32),
    "TCN": _model(TCNModel, output_chunk_length=HORIZON, num_filters=8, dropout=0.0),
    "TiDE": _model(TiDEModel, output_chunk_length=HORIZON, hidden_size=32),
    "Transformer": _model(
        TransformerModel,
        output_chunk_length=HORIZON,
        d_model=16,
        nhead=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dim_feedforward=32,
    ),
    "RNN (LSTM)": _model(RNNModel, model="LSTM", training_length=30, hidden_dim=32),
}
