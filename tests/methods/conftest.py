"""Two small networks with their sites written by hand, and the smallest loop that honours the contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from methods.base import Batch, Method, Phase, Site, StepContext

torch.set_num_threads(1)


def site(name: str, size: int, norms: tuple[str, ...] = (), readers: tuple[str, ...] = ()) -> Site:
    return Site(name, size, "inner", (name,), norms, norms or (name,), readers, 1.0, 1.0)


@pytest.fixture
def mlp() -> tuple[nn.Module, list[Site]]:
    """64-20-10-10, with biases."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 10))
    return network, [site("0", 20, readers=("2",)), site("2", 10, readers=("4",))]


@pytest.fixture
def convnet() -> tuple[nn.Module, list[Site]]:
    """Two convolutions with batch norm (one with a bias before it) and a classifier, for 1 × 8 × 8 images."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )
    return network, [site("0", 8, ("1",), ("3",)), site("3", 12, ("4",), ("8",))]


@pytest.fixture
def make_context() -> Callable[..., StepContext]:
    def make(
        strength: float | None = None, steps: int = 100, seed: int = 0, steps_per_epoch: int = 10
    ) -> StepContext:
        return StepContext(
            strength=strength,
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            train_size=steps_per_epoch * 16,
            device=torch.device("cpu"),
            generator=torch.Generator().manual_seed(seed),
            task_loss=nn.functional.cross_entropy,
            phase=Phase("none", 1.0),
        )

    return make


@pytest.fixture
def train() -> Callable[..., None]:
    """Runs all phases of an attached method over `batches` again and again, for the steps of its context."""

    def run(
        method: Method,
        batches: Sequence[tuple[Tensor, Tensor]],
        make_optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        each_step: Callable[[], None] = lambda: None,
    ) -> None:
        context = method.context
        optimiser = make_optimiser(list(method.network.parameters()))
        base_rate = optimiser.param_groups[0]["lr"]
        for phase in method.phases(context.steps):
            context.phase, context.phase_step = phase, 0
            context.phase_steps = round(phase.fraction * context.steps)
            optimiser.param_groups[0]["lr"] = context.learning_rate = base_rate * phase.learning_rate_scale
            method.start_phase(phase)
            for _ in range(context.phase_steps):
                inputs, targets = batches[context.step % len(batches)]
                method.network.train()
                optimiser.zero_grad()
                method.training_step(Batch(inputs, targets))
                optimiser.step()
                method.after_step()
                context.step += 1
                context.phase_step += 1
                each_step()
        method.network.eval()

    return run


@pytest.fixture
def noise_batches() -> Callable[[tuple[int, ...]], list[tuple[Tensor, Tensor]]]:
    """Four batches of 16 random images of a shape, with random labels."""

    def make(shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(7)
        return [
            (torch.randn(16, *shape, generator=generator), torch.randint(10, (16,), generator=generator))
            for _ in range(4)
        ]

    return make
