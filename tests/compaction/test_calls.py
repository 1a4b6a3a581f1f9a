"""What the code does beside calling layers: pieces read as one, sizes of one tensor in calls of another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_networks import check, images, parameters, randomise
from torch import Tensor, nn

from bench.compaction import find_sites
from methods.base import SparsityPlan

EXAMPLE = images(2, 3, 8, 8)


class Coded(nn.Module):
    """Layers, and a function that calls them."""

    def __init__(self, code: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.code = code
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def halves(network: nn.Module) -> SparsityPlan:
    """Every second unit of every site off."""
    return SparsityPlan(kept={s.name: torch.arange(s.size) % 2 > 0 for s in find_sites(network, EXAMPLE)})


@pytest.mark.parametrize(
    "joined",
    [
        lambda x: torch.stack(x.chunk(2, 1)).sum(0),
        lambda x: torch.cat(x.split([4, 4], 1)[::-1], 1),
        lambda x: torch.stack(x.unbind(1), 1),
    ],
)
def test_several_tensors_that_are_read_as_one(joined: Callable[[Tensor], Tensor]) -> None:
    channels = joined(torch.zeros(2, 8, 8, 8)).shape[1]

    def code(m: nn.Module, x: Tensor) -> Tensor:
        return m.fc(m.after(joined(m.conv(m.stem(x)).relu())).relu().mean((2, 3)))

    network = Coded(
        code,
        stem=nn.Conv2d(3, 6, 1),
        conv=nn.Conv2d(6, 8, 1),
        after=nn.Conv2d(channels, 5, 1),
        fc=nn.Linear(5, 3),
    )
    randomise(network)
    assert [site.name for site in find_sites(network, EXAMPLE)] == ["stem", "after"]
    result = check(network, halves(network), EXAMPLE)
    assert result.certificate.removed_units == 6
    assert any("several tensors that are read as one" in what for what in result.pinned)
    assert parameters(check(network, SparsityPlan(), EXAMPLE).network) == parameters(network)
