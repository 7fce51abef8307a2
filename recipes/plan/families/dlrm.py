"""A recommender: embedding tables, products of all pairs, two small networks.

Reference:
    Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
    Systems", 2019.
"""

import dataclasses
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class DLRMConfig:
    """
    table_rows: of each embedding table; embedding_dim: of all.
    bottom, top: widths of the networks for dense features and for the products.
    """

    table_rows: tuple[int, ...] = (1_000_000,) * 8
    embedding_dim: int = 64
    num_dense: int = 13
    bottom: tuple[int, ...] = (512, 256)
    top: tuple[int, ...] = (512, 256)


class DLRM(nn.Module):
    """Dense features [batch, num_dense], a row of every table [batch, num_tables] and labels
    [batch] of 0 and 1 to a binary cross entropy.
    """

    def __init__(self, config: DLRMConfig) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.Embedding(rows, config.embedding_dim) for rows in config.table_rows
        )
        self.bottom = _network(config.num_dense, *config.bottom, config.embedding_dim)
        num_features = len(config.table_rows) + 1
        self.top = _network(num_features**2 + config.embedding_dim, *config.top, 1)

    def forward(self, dense: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        looked_up = [table(rows[:, at]) for at, table in enumerate(self.tables)]
        features = torch.stack([bottom, *looked_up], dim=1)
        products = torch.einsum("bfd,bgd->bfg", features, features)
        logits = self.top(torch.cat([bottom, products.flatten(1)], dim=1))
        return F.binary_cross_entropy_with_logits(logits.squeeze(1), labels)


def _network(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
