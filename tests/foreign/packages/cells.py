"""scvi-tools: variational autoencoders of gene counts, which make their own Trainer; batches are dicts."""

import anndata
import numpy as np
import scvi

REQUIREMENTS = ["scvi-tools"]


def _counts(cells=256, genes=40):
    draw = np.random.default_rng(0)
    data = anndata.AnnData(draw.poisson(3, (cells, genes)).astype(np.float32))
    data.obs["batch"] = draw.choice(["x", "y"], cells)
    return data


def variational(callbacks, folder):
    scvi.settings.seed = 7
    data = _counts()
    scvi.model.SCVI.setup_anndata(data, batch_key="batch")
    model = scvi.model.SCVI(data, n_hidden=32, n_latent=8)
    model.train(
        max_epochs=2,
        accelerator="cpu",
        train_size=0.7,
        validation_size=0.3,
        batch_size=32,
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        logger=None,
        default_root_dir=str(folder),
        callbacks=callbacks,
    )
    return model.module


MODELS = {"SCVI": variational}
