"""Peak memory of small networks whose live tensors can be counted by hand (bytes = 4 × float32)."""

import pytest
import torch
from torch import Tensor, nn

from bench.measure.memory import LiveStorages, peak_bytes
from bench.measure.size import weight_bytes


def floats(network: nn.Module, example: Tensor) -> float:
    """Peak without weights and input, in float32 values."""
    return (peak_bytes(network, example) - weight_bytes(network) - example.nbytes) / 4


def test_chain_of_linear_layers() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    assert peak_bytes(network, torch.randn(1, 4)) == 4 * ((32 + 8 + 16 + 2) + 4 + 8 + 2)


def test_a_layer_s_input_is_freed_once_the_next_has_read_its_output() -> None:
    network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)))
    assert floats(network, torch.randn(1, 8)) == 8 + 8


def test_scales_with_the_batch() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    assert floats(network, torch.randn(32, 4)) == 32 * (8 + 2)


@pytest.mark.parametrize(("inplace", "live"), [(False, 16), (True, 8)])
def test_relu_in_place_needs_no_second_tensor(inplace: bool, live: int) -> None:
    assert floats(nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace)), torch.randn(1, 4)) == live


def test_views_cost_nothing() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            first, second = x.flatten(1).chunk(2, dim=1)
            return [first.t(), second.expand(5, -1), x.unsqueeze(0), x.detach(), x[..., ::2]]

    assert floats(Views(), torch.randn(1, 3, 2, 2)) == 0


def test_a_view_keeps_the_whole_storage_alive() -> None:
    class KeepsASlice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            corner = (x + 1)[:, :1]  # 1 of 100 values is used, 100 stay
            wide = x.repeat(1, 3)
            return corner + wide[:, :1]

    assert floats(KeepsASlice(), torch.randn(1, 100)) == 100 + 300 + 1


def test_a_skip_connection_holds_its_input() -> None:
    class Residual(nn.Module):
        def __init__(self, skip: bool) -> None:
            super().__init__()
            self.skip = skip
            self.body = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            start = x * 2
            out = start
            if not self.skip:
                del start
            for layer in self.body:
                out = layer(out)
            return out + start if self.skip else out

    example = torch.randn(1, 8)
    assert floats(Residual(False), example) == 16
    assert floats(Residual(True), example) == 24


def test_weights_and_constants_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)
            self.constant = torch.randn(1, 4)  # neither parameter nor buffer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x) + self.constant) + self.constant

    # while the second product runs: the sum, the product; the constant, known since its first use
    assert peak_bytes(Tied(), torch.randn(1, 4)) == 4 * (16 + 4 + 4 + 4 + 4)


def test_growing_a_tensor_is_seen() -> None:
    with torch.no_grad(), LiveStorages([]) as live:
        tensor = torch.empty(10)
        tensor.resize_(1000)
        del tensor
        torch.empty(10)
    assert live.peak == 4000


def test_an_address_used_again_is_a_new_tensor() -> None:
    with torch.no_grad(), LiveStorages([]) as live:
        for _ in range(50):
            torch.empty(1 << 16)
    assert live.peak == 4 << 16


def test_same_each_time_and_the_network_keeps_its_mode() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten()
    ).train()
    example = torch.randn(2, 3, 8, 8)
    assert len({peak_bytes(network, example) for _ in range(3)}) == 1
    assert all(module.training for module in network.modules())
    assert int(network[1].num_batches_tracked) == 0
