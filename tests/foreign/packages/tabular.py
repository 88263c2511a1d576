"""pytorch-tabular: models make their own Trainer, which takes the callbacks in ``fit``; batches are dicts."""

import numpy as np
import pandas as pd
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import (
    CategoryEmbeddingModelConfig,
    FTTransformerConfig,
    GANDALFConfig,
    TabTransformerConfig,
)

REQUIREMENTS = ["einops", "pandas<3", "scikit-base", "pytorch-tabnet"]
NO_DEPS = ["pytorch-tabular"]  # it asks for torchmetrics<1.9


def _table(rows=256):
    draw = np.random.default_rng(0)
    numbers = {f"n{i}": draw.normal(size=rows).astype(np.float32) for i in range(4)}
    labels = {f"c{i}": draw.choice(list("abc"), rows) for i in range(2)}
    target = (numbers["n0"] + (labels["c0"] == "a") > 0.3).astype(int)
    return pd.DataFrame({**numbers, **labels, "target": target})


def _fit(config, callbacks, folder):
    table = _table()
    model = TabularModel(
        data_config=DataConfig(
            target=["target"], continuous_cols=[f"n{i}" for i in range(4)], categorical_cols=["c0", "c1"]
        ),
        model_config=config,
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            max_epochs=2,
            batch_size=32,
            accelerator="cpu",
            progress_bar="none",
            checkpoints=None,
            early_stopping=None,
            load_best=False,
            trainer_kwargs={"default_root_dir": str(folder)},
        ),
        verbose=False,
    )
    model.fit(train=table[:192], validation=table[192:], callbacks=callbacks, seed=7)
    return model.model


def embedding(callbacks, folder):
    return _fit(CategoryEmbeddingModelConfig(task="classification", layers="32-16"), callbacks, folder)


def ft_transformer(callbacks, folder):
    config = FTTransformerConfig(task="classification", input_embed_dim=16, num_heads=2, num_attn_blocks=2)
    return _fit(config, callbacks, folder)


def tab_transformer(callbacks, folder):
    config = TabTransformerConfig(task="classification", input_embed_dim=16, num_heads=2, num_attn_blocks=2)
    return _fit(config, callbacks, folder)


def gandalf(callbacks, folder):
    return _fit(GANDALFConfig(task="classification", gflu_stages=3), callbacks, folder)


MODELS = {
    "CategoryEmbedding": embedding,
    "FTTransformer": ft_transformer,
    "TabTransformer": tab_transformer,
    "GANDALF": gandalf,
}
