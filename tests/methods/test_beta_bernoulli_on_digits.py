"""Beta-Bernoulli dropout removes units of real networks and keeps their accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import methods
from bench.compaction.gating import with_gates
from methods.base import Batch, Evaluation, Method, Site, SparsityPlan, StepContext
from methods.masks import Masks

SEEDS, EPOCHS, BATCH = (0, 1, 2), 40, 64
STRENGTH = 3.0
SITES = [
    Site("0", 100, "inner", ("0",), (), ("0",), ("2",), 1.0, 1.0),
    Site("2", 50, "inner", ("2",), (), ("2",), ("4",), 1.0, 1.0),
]


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]


def trained(
    name: str, strength: float | None, seed: int, make_context: Callable[..., StepContext], **config: float
) -> Method:
    """A 64-100-50-10, gates and all by Adam with a cosine to zero in each phase."""
    inputs, targets = digits()
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    batches = list(zip(inputs[450:].split(BATCH), targets[450:].split(BATCH), strict=True))
    method = methods.create(name, **config)
    context = make_context(strength=strength, steps=EPOCHS * len(batches), seed=seed)
    context.train_size = len(inputs) - 450
    method.attach(network, SITES, context)
    for phase in method.phases(EPOCHS):
        context.phase, context.phase_step = phase, 0
        context.phase_steps = round(phase.fraction * context.steps)
        method.start_phase(phase)
        groups = [{"params": list(network.parameters()), "lr": 4e-3}]
        for group in method.parameter_groups():
            groups.append({"params": group["params"], "lr": group["lr"]})
        optimiser = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, context.phase_steps)
        network.train()
        for _ in range(context.phase_steps):
            optimiser.zero_grad()
            method.training_step(Batch(*batches[context.step % len(batches)]))
            optimiser.step()
            schedule.step()
            method.after_step()
            context.step += 1
            context.phase_step += 1
        network.eval()
        method.after_epoch(lambda: evaluation(network))
    method.detach()
    return method


@torch.no_grad()
def evaluation(network: nn.Module) -> Evaluation:
    inputs, targets = digits()
    logits = network(inputs[:450])
    hits = (logits.argmax(dim=1) == targets[:450]).float().mean()
    return Evaluation(float(nn.functional.cross_entropy(logits, targets[:450])), float(hits))


@torch.no_grad()
def accuracy(method: Method, plan: SparsityPlan) -> float:
    """Of the plain network with the plan applied, on 450 held-out images."""
    masks = Masks(method.network, SITES)
    masks.set(plan)
    masks.enforce()
    return evaluation(method.network).accuracy


def test_removes_units_and_keeps_the_accuracy(make_context: Callable[..., StepContext]) -> None:
    """One strength, three seeds; against as many units of the dense network removed at random. Neither is
    fine-tuned."""
    gaps, advantages = [], []
    for seed in SEEDS:
        method = trained(
            "beta-bernoulli", STRENGTH, seed, make_context, pretrain=0.25, gate_learning_rate=0.05
        )
        plan = method.plan(STRENGTH)
        gone = {name: int((~kept).sum()) for name, kept in plan.kept.items()}
        ours = accuracy(method, plan)
        dense = trained("dense", 0.0, seed, make_context)
        reference = accuracy(dense, SparsityPlan())
        at_random = accuracy(dense, SparsityPlan(kept=shuffled(plan.kept, seed)))
        print(f"\nseed {seed}: removed {gone}, {ours:.3f}; dense {reference:.3f}; at random {at_random:.3f}")
        assert sum(gone.values()) >= 35
        gaps.append(reference - ours)
        advantages.append(ours - at_random)
    assert sum(gaps) / len(SEEDS) < 0.03
    assert sum(advantages) / len(SEEDS) > 0.1


def shuffled(kept: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """As many units of each site, others."""
    generator = torch.Generator().manual_seed(seed)
    return {name: mask[torch.randperm(len(mask), generator=generator)] for name, mask in kept.items()}


def test_dependent_gates_close_further_units(make_context: Callable[..., StepContext]) -> None:
    """Three seeds: fewer units are active on average than are left, in every layer; within 4 points of dense, and far
    better than as many units of the dense network left at random, all of them active."""
    gaps, advantages = [], []
    for seed in SEEDS:
        method = trained(
            "dependent-beta-bernoulli",
            STRENGTH,
            seed,
            make_context,
            pretrain=0.2,
            dependent=0.3,
            gate_learning_rate=0.05,
        )
        plan = method.plan(STRENGTH)
        left = {name: int(kept.sum()) for name, kept in plan.kept.items()}
        ours = evaluation(with_gates(method.network, SITES, method.input_gates())).accuracy
        dense = trained("dense", 0.0, seed, make_context)
        reference = accuracy(dense, SparsityPlan())
        at_random = accuracy(dense, SparsityPlan(kept=shuffled(plan.kept, seed)))
        print(f"\nseed {seed}: left {left}, active {plan.expected_activity}")
        print(f"{ours:.3f}; dense {reference:.3f}; at random {at_random:.3f}")
        assert sum(left.values()) <= 130
        assert all(plan.expected_activity[name] < 0.9 * left[name] for name in left)
        gaps.append(reference - ours)
        advantages.append(ours - at_random)
    assert sum(gaps) / len(SEEDS) < 0.04
    assert sum(advantages) / len(SEEDS) > 0.1
