from __future__ import annotations

import torch
from torch import Tensor, nn

from bench import networks
from methods.norm_behind import norms_behind


def test_layers_of_a_residual_network() -> None:
    network = networks.build("resnet20", (3, 32, 32), 10)
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    found = norms_behind(network)
    assert set(convolutions) <= found.keys()
    assert "fc" not in found
    assert found["stages.0.0.conv2"] == "stages.0.0.bn2"


class Branches(nn.Module):
    """`read`: by a sum too. `twice`: called twice, as is the normalisation behind the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped, self.read, self.twice = (nn.Linear(4, 4) for _ in range(3))
        self.dropout, self.norm1, self.norm2, self.norm3 = (
            nn.Dropout(),
            *(nn.BatchNorm1d(4) for _ in range(3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.dropout(self.dropped(x)))
        x = self.read(x)
        x = self.norm2(x) + x
        return self.norm3(self.twice(self.norm3(self.twice(x))))


def test_only_where_nobody_else_reads_and_all_is_called_once() -> None:
    assert norms_behind(Branches()) == {"dropped": "norm1", "dropout": "norm1"}


class Fickle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if bool(torch.sum(x) > 0) else x


def test_a_network_that_cannot_be_followed() -> None:
    assert norms_behind(Fickle()) == {}
