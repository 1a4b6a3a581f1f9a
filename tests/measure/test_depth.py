"""Weight layers, and those that a nonlinearity keeps apart, by hand."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import networks
from bench.compaction.layers import change_layers
from bench.measure.depth import Depth, depth


def test_a_chain() -> None:
    assert depth(networks.build("lenet5", (1, 28, 28), 10), torch.zeros(1, 1, 28, 28)) == Depth(4, 4)


def test_a_linearised_layer_is_there_but_not_active_and_a_merged_one_is_gone() -> None:
    network, example = networks.build("mlp-deep", (1, 8, 8), 10).eval(), torch.zeros(1, 1, 8, 8)
    assert depth(network, example) == Depth(7, 7)
    change_layers(network, "linearise", ["fc2", "fc3"], example)
    assert depth(network, example) == Depth(7, 5)
    change_layers(network, "merge", ["fc2", "fc3"], example)
    assert depth(network, example) == Depth(6, 5)


def test_the_activation_behind_a_sum_counts_and_a_dropped_branch_does_not() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            stream = self.stem(images)  # its only way to an activation leads through the sum
            stream = functional.relu(stream + self.norm(self.body(stream)))
            return self.head(functional.dropout(stream, training=False).mean((2, 3)))

    network, example = Residual().eval(), torch.zeros(1, 1, 6, 6)
    assert depth(network, example) == Depth(3, 3)
    network = change_layers(network, "drop", ["norm"], example)
    assert depth(network, example) == Depth(2, 2)


def test_a_layer_that_is_called_twice_counts_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, values: Tensor) -> Tensor:
            return self.last(self.layer(functional.gelu(self.layer(values))))

    assert depth(Twice(), torch.zeros(1, 4)) == Depth(2, 2)
