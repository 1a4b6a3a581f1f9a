"""Small networks for the tests, with every statistic and affine parameter random, so that mistakes show."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from bench.compaction import Compacted, compact, find_sites, masked_reference
from methods.base import LayerAction, SparsityPlan
from methods.input_gate import InputGate


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                if module.running_mean is not None and module.running_var is not None:
                    module.running_mean.normal_(generator=generator)
                    module.running_var.uniform_(0.5, 2.0, generator=generator)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(generator=generator)
            elif isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.normal_(0, 0.3, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(generator=generator)
            elif isinstance(module, nn.PReLU):
                module.weight.uniform_(0.1, 0.5, generator=generator)
    return network


def images(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def off(size: int, *units: int) -> Tensor:
    """A mask (size,) that is False at `units`."""
    mask = torch.ones(size, dtype=torch.bool)
    mask[list(units)] = False
    return mask


def random_plan(network: nn.Module, example: Tensor, seed: int = 0, share: float = 0.5) -> SparsityPlan:
    generator = torch.Generator().manual_seed(seed)
    sites = find_sites(network, example)
    return SparsityPlan(kept={s.name: torch.rand(s.size, generator=generator) >= share for s in sites})


def plan_of(actions: Iterable[tuple[str, tuple[str, ...]]] = (), **kept: Tensor) -> SparsityPlan:
    named = {name.replace("__", "."): mask for name, mask in kept.items()}
    return SparsityPlan(kept=named, layer_actions=tuple(LayerAction(k, v) for k, v in actions))  # type: ignore[arg-type]


def check(network: nn.Module, plan: SparsityPlan, example: Tensor) -> Compacted:
    """Compacts, and holds the result against the masked reference on other inputs than the certificate's."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = compact(network, plan, example, real=example)
    assert result.certificate.passed, result.certificate
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    reference = masked_reference(network, plan, example)
    with torch.no_grad():
        inputs = images(3, *example.shape[1:], seed=99)
        expected = reference(inputs)
        torch.testing.assert_close(
            result.network(inputs), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item()
        )
    return result


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


class Residual(nn.Module):
    """Stem → one residual block → classifier: the stream has two producers."""

    def __init__(self, shortcut: bool = False) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv1, self.bn1 = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.shortcut = nn.Sequential(nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6)) if shortcut else None
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn0(self.stem(x)))
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.shortcut is None else self.shortcut(x)
        return self.fc(torch.flatten(self.relu(out).mean((2, 3)), 1))


class Coded(nn.Module):
    """Layers, and a function that calls them."""

    def __init__(self, code: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.code = code
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def random_gate(size: int, seed: int = 0) -> InputGate:
    """Open for some images and closed for others, where values are about as large as 1."""
    generator = torch.Generator().manual_seed(seed)
    slope, offset = (torch.randn(size, generator=generator) for _ in range(2))
    return InputGate(4 * slope, 0.5 + 0.5 * offset, torch.full((size,), 0.3))
