"""The paper's claim on real data: what targeted dropout trained survives the pruning of units as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import methods
from methods.base import Method, Site, StepContext
from methods.masks import Masks

SEEDS, EPOCHS, BATCH = (0, 1, 2), 25, 64
STRENGTHS = (0.7, 0.75, 0.8)


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]


def accuracies(
    name: str,
    config: Mapping[str, float],
    seed: int,
    make_context: Callable[..., StepContext],
    train: Callable[..., None],
) -> list[float]:
    """Of the pruned 64-300-100-10 at each of STRENGTHS, on 450 held-out images."""
    inputs, targets = digits()
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    sites = [
        Site("0", 300, "inner", ("0",), (), ("0",), ("2",), 1.0, 1.0),
        Site("2", 100, "inner", ("2",), (), ("2",), ("4",), 1.0, 1.0),
    ]
    batches = list(zip(inputs[450:].split(BATCH), targets[450:].split(BATCH), strict=True))
    method = methods.create(name, **config)
    method.attach(network, sites, make_context(steps=EPOCHS * len(batches), seed=seed))
    train(method, batches, sgd)
    method.detach()
    return [pruned_accuracy(method, strength, sites, inputs[:450], targets[:450]) for strength in STRENGTHS]


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)


@torch.no_grad()
def pruned_accuracy(
    method: Method, strength: float, sites: Sequence[Site], inputs: Tensor, targets: Tensor
) -> float:
    """Strengths ascend and remove nested sets, so that pruning in place is allowed."""
    masks = Masks(method.network, sites)
    masks.set(method.plan(strength))
    masks.enforce()
    return float((method.network(inputs).argmax(dim=1) == targets).float().mean())


def test_units_survive_better_than_without_the_noise(
    make_context: Callable[..., StepContext], train: Callable[..., None]
) -> None:
    """Than those of the smallest norm of a plain training do, or any; nothing is fine-tuned."""

    def mean(name: str, **config: float) -> Tensor:
        runs = [accuracies(name, config, seed, make_context, train) for seed in SEEDS]
        return torch.tensor(runs).mean(dim=0)

    targeted, dense = mean("targeted-dropout"), mean("dense")
    plain, at_random = mean("magnitude", finetune=0), mean("random", finetune=0)
    print(
        f"\nunits removed {STRENGTHS}: targeted dropout {targeted.tolist()}, magnitude {plain.tolist()}, "
        f"random {at_random.tolist()}, dense {dense.tolist()}"
    )
    assert (targeted > dense - 0.05).all()
    assert (targeted - plain > 0.03).all()
    assert (targeted - at_random > 0.1).all()
