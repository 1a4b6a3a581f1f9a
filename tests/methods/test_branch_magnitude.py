"""Branch magnitude: what a branch scores, which go, and that they stay at zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import methods
from bench.compaction import compact, find_branches, find_sites
from methods.base import Batch, LayerAction, Site, StepContext
from methods.branch_magnitude import BranchMagnitude

Network = tuple[nn.Module, list[Site]]
MakeContext = Callable[..., StepContext]


class Block(nn.Module):
    """Its branch ends in a normalisation, or in a convolution with a bias."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.end = nn.BatchNorm2d(4) if normalised else nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.end(self.relu(self.conv(x)))


@pytest.fixture
def residual() -> Network:
    """Four blocks; branches `1.end` and `3.end` end in normalisations, `2.end` and `4.end` in convolutions."""
    torch.manual_seed(0)
    blocks = [Block(normalised) for normalised in (True, False, True, False)]
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *blocks, *head)
    example = torch.zeros(1, 1, 8, 8)
    return network, [*find_sites(network, example), *find_branches(network, example)]


def attached(network: Network, context: StepContext, **config: Any) -> BranchMagnitude:
    method = methods.create("branch-magnitude", **config)
    assert isinstance(method, BranchMagnitude)
    method.attach(*network, context)
    return method


def set_scores(network: nn.Module, *scores: float) -> None:
    """Parameters of the last layers that have these scores, all their channels alike."""
    with torch.no_grad():
        for block, score in zip((1, 2, 3, 4), scores, strict=True):
            weight = network.get_parameter(f"{block}.end.weight")
            weight.fill_(score / math.sqrt(weight[0].numel()))


def dropped(method: BranchMagnitude, strength: float) -> list[str]:
    actions = method.plan(strength).layer_actions
    assert all(action == LayerAction("drop", action.layers) for action in actions)
    return [layer for action in actions for layer in action.layers]


def test_scores_by_hand(residual: Network, make_context: MakeContext) -> None:
    """√ of the mean of γ²; and of the squared ℓ2 norms of the rows. Shifts and biases do not count."""
    network, _ = residual
    with torch.no_grad():
        network.get_parameter("1.end.weight").copy_(torch.tensor([3.0, -4.0, 0.0, 0.0]))
        network.get_parameter("1.end.bias").fill_(100.0)
        rows = torch.tensor([[1.0, 2.0, 2.0, 0.0], [0.0] * 4, [0.0, -4.0, 0.0, 0.0], [0.0] * 4])
        network.get_parameter("2.end.weight").copy_(rows.view(4, 4, 1, 1))
    method = attached(residual, make_context())
    assert [branch.name for branch in method.branches] == ["1.end", "2.end", "3.end", "4.end"]
    assert method.scores()[:3].tolist() == pytest.approx([math.sqrt(25 / 4), math.sqrt((9 + 16) / 4), 1.0])


def test_scores_are_what_a_branch_adds(residual: Network, make_context: MakeContext) -> None:
    """Of whitened inputs the root mean square over the channels of the standard deviation."""
    network, _ = residual
    scores = attached(residual, make_context()).scores()
    inputs = torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for at, block in enumerate((1, 2, 3, 4)):
            added = network.get_submodule(f"{block}.end").train()(inputs)
            deviation = added.transpose(0, 1).flatten(1).std(dim=1)
            assert deviation.square().mean().sqrt().item() == pytest.approx(scores[at].item(), rel=0.02)


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (0.0, []),
        (0.24, []),
        (0.25, ["3.end"]),
        (0.5, ["2.end", "3.end"]),
        (0.99, ["2.end", "3.end", "4.end"]),
        (1.0, ["1.end", "2.end", "3.end", "4.end"]),
    ],
)
def test_the_weakest_go(
    strength: float, expected: list[str], residual: Network, make_context: MakeContext
) -> None:
    """Branches of either kind in one ranking; how many is rounded down, and they go in the order of execution."""
    network, _ = residual
    set_scores(network, 0.9, 0.5, 0.4, 0.7)
    method = attached(residual, make_context(), finetune=0)
    assert method.traits.trains_once
    assert dropped(method, strength) == expected
    assert method.plan(strength).notes == (f"residual branches dropped: {len(expected)} of 4",)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_dropped_branch_stays_at_zero(
    optimiser: str,
    residual: Network,
    make_context: MakeContext,
    train: Callable[..., None],
    noise_batches: Callable[[tuple[int, ...]], list[tuple[Tensor, Tensor]]],
) -> None:
    """While momentum and weight decay push; so the network that was trained is the compact one."""
    network, _ = residual
    method = attached(residual, make_context(strength=0.5, steps=40))
    outputs: dict[str, Tensor] = {}
    for name in ("1.end", "2.end", "3.end", "4.end"):
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.update({name: output.detach()})
        )
    seen = 0

    def check() -> None:
        nonlocal seen
        if method.context.phase.name == "finetune" and method.context.phase_step > 1:
            zero = [name for name, output in outputs.items() if not output.any()]
            assert zero == dropped(method, 0.5)
            assert len(zero) == 2
            seen += 1

    make = {
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-2),
        "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=1e-1),
    }
    train(method, noise_batches((1, 8, 8)), make[optimiser], check)
    assert seen >= 8
    method.detach()
    images = torch.randn(5, 1, 8, 8)
    expected = network(images)
    result = compact(network, method.plan(0.5), images)
    assert result.certificate.passed
    assert not any(name in dict(result.network.named_modules()) for name in dropped(method, 0.5))
    torch.testing.assert_close(result.network(images), expected)
    with pytest.raises(ValueError, match=r"was trained for strength 0\.5, not 0\.25"):
        method.plan(0.25)


def test_state_survives_a_resume(residual: Network, make_context: MakeContext) -> None:
    """Also where the scores have changed since: what was dropped stays dropped."""
    network, _ = residual
    set_scores(network, 0.1, 0.9, 0.2, 0.8)
    method = attached(residual, make_context(strength=0.5))
    (_, finetune) = method.phases(8)
    method.start_phase(finetune)
    state = method.state_dict()
    assert not network.get_submodule("1.end").state_dict()["weight"].any()
    set_scores(network, 0.9, 0.1, 0.8, 0.2)
    resumed = attached(residual, make_context(strength=0.5))
    resumed.load_state_dict(state)
    resumed.after_step()
    assert dropped(resumed, 0.5) == dropped(method, 0.5) == ["1.end", "3.end"]
    assert network.get_parameter("2.end.weight").any()
    assert not network.get_parameter("3.end.weight").any()


def test_strength_zero_drops_nothing(
    residual: Network, make_context: MakeContext, noise_batches: Callable[..., list[tuple[Tensor, Tensor]]]
) -> None:
    network, _ = residual
    before = {name: value.clone() for name, value in network.state_dict().items()}
    method = attached(residual, make_context(strength=0.0))
    method.start_phase(method.phases(8)[1])
    method.after_step()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    ((inputs, targets), *_) = noise_batches((1, 8, 8))
    method.training_step(Batch(inputs, targets))
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert dropped(method, 0.0) == []


def test_refuses_networks_without_branches(residual: Network, convnet: Network) -> None:
    method = methods.create("branch-magnitude")
    assert method.supports(*residual) is None
    assert method.supports(*convnet) == "it has no residual branch that could be dropped"


def test_masks_of_units_know_no_branch(residual: Network, make_context: MakeContext) -> None:
    """Row i of a branch's layers is no unit of its: held as one, it would empty some other unit."""
    method = attached(residual, make_context())
    assert {site.kind for site in method.masks.sites.values()} == {"stream", "inner"}
