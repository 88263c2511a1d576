"""chemprop: property prediction by message passing on molecular graphs; batches are objects of its own."""

import numpy as np
from chemprop import data, featurizers, models, nn
from training import fitted

REQUIREMENTS = ["chemprop"]
SMILES = """C CC CCC CCCC CCO CCN CCCO CC(C)O CC(=O)O CCOC c1ccccc1 Cc1ccccc1 Oc1ccccc1 Nc1ccccc1 c1ccncc1 CC(C)C
CCCl CCBr CC#N C=CC C#CC CC(=O)C CCS CCOCC OCCO NCCN CC(N)C(=O)O c1ccc2ccccc2c1 C1CCCCC1 C1CCNCC1 OC1CCCCC1
CNC""".split()


def _loader(points, train):
    dataset = data.MoleculeDataset(points, featurizers.SimpleMoleculeMolGraphFeaturizer())
    return data.build_dataloader(dataset, batch_size=8, num_workers=0, shuffle=train, seed=0)


def message_passing(callbacks, folder):
    noise = np.random.default_rng(0).normal(size=len(SMILES))
    points = [
        data.MoleculeDatapoint.from_smi(smiles, [len(smiles) + 0.1 * noise_of])
        for smiles, noise_of in zip(SMILES, noise, strict=True)
    ]
    model = models.MPNN(
        nn.BondMessagePassing(d_h=32), nn.MeanAggregation(), nn.RegressionFFN(input_dim=32, hidden_dim=32)
    )
    return fitted(model, _loader(points[:24], True), _loader(points[24:], False), callbacks, folder)


MODELS = {"MPNN": message_passing}
