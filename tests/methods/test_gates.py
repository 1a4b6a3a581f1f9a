"""A gate in the weights of an end is the gate on its output: values, gradients, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from methods.base import Site
from methods.gates import Gate, Placement

Network = tuple[nn.Module, list[Site]]

FOLDED = 64
"""Images from which on the gates of the mlp, of 64 inputs, go into its weights."""


class Fixed(Gate):
    """The same learned values in every pass; per_image: as one row for each image."""

    def __init__(self, values: Tensor, per_image: bool) -> None:
        super().__init__(len(values))
        self.scale, self.per_image = nn.Parameter(values.clone()), per_image

    def draw(self, training: bool, batch: int) -> Tensor:
        return self.scale.expand(batch, -1) if self.per_image else self.scale * 1.0


@pytest.mark.parametrize(("kind", "images"), [("mlp", 6), ("mlp", FOLDED), ("convnet", 6)])
def test_shared_and_per_image_gates_agree(kind: str, images: int, request: pytest.FixtureRequest) -> None:
    network, sites = request.getfixturevalue(kind)
    network.double().train()
    inputs = torch.randn(images, 64).double() if kind == "mlp" else torch.randn(images, 1, 8, 8).double()
    values = {s.name: torch.rand(s.size, dtype=torch.float64).round(decimals=1) for s in sites}
    found = []
    for per_image in (False, True):
        gates = {name: Fixed(value, per_image) for name, value in values.items()}
        placement = Placement(network, sites, gates)
        network.zero_grad()
        output = network(inputs)
        output.square().sum().backward()
        placement.remove()
        grads = [p.grad for p in (*network.parameters(), *(g.scale for g in gates.values()))]
        found.append([output.detach(), *(g.clone() for g in grads if g is not None)])
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_parameters_are_in_view_again_after_a_call_also_after_a_failed_one(mlp: Network) -> None:
    network, sites = mlp
    names = [name for name, _ in network.named_parameters()]
    placement = Placement(network, sites, {s.name: Fixed(torch.zeros(s.size), False) for s in sites})
    first, hidden = network.get_submodule("0"), []
    first.register_forward_pre_hook(lambda module, inputs: hidden.append("weight" in vars(module)))
    network(torch.ones(FOLDED, 64))
    with pytest.raises(RuntimeError):
        network(torch.ones(FOLDED, 63))
    network(torch.ones(FOLDED - 1, 64))
    assert hidden == [True, True, False]
    placement.remove()
    assert first.weight is network.get_parameter("0.weight")
    assert "weight" not in vars(first)
    assert "bias" not in vars(first)
    assert [name for name, _ in network.named_parameters()] == names
