"""torch-geometric: a graph network in a LightningModule of the user's own; batches are objects of the package."""

import lightning as L
import torch
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCN, global_mean_pool
from training import fitted

REQUIREMENTS = ["torch-geometric"]


class Graphs(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = GCN(8, 32, num_layers=2, out_channels=16)
        self.head = torch.nn.Linear(16, 1)

    def forward(self, x, edge_index, batch):
        return self.head(global_mean_pool(self.net(x, edge_index), batch))

    def _loss(self, data):
        return F.mse_loss(self(data.x, data.edge_index, data.batch)[:, 0], data.y)

    def training_step(self, batch, batch_idx):
        return self._loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self._loss(batch), batch_size=batch.num_graphs)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def _graphs(count=64):
    draw = torch.Generator().manual_seed(0)
    graphs = []
    for _ in range(count):
        nodes = int(torch.randint(4, 9, (), generator=draw))
        x = torch.randn(nodes, 8, generator=draw)
        edges = torch.randint(0, nodes, (2, 3 * nodes), generator=draw)
        graphs.append(Data(x=x, edge_index=edges, y=x.mean().reshape(1)))
    return graphs


def gcn(callbacks, folder):
    graphs = _graphs()
    loaders = (DataLoader(part, batch_size=16) for part in (graphs[:48], graphs[48:]))
    return fitted(Graphs(), *loaders, callbacks, folder)


MODELS = {"GCN": gcn}
