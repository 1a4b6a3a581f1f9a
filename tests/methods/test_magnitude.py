"""Magnitude and random pruning: counts, schedules, and masks that hold."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import methods
from methods.base import Batch, Method, Phase, Site, StepContext
from methods.finetuning import FinetunedMethod
from methods.magnitude import Magnitude, gradual_sparsity

Network = tuple[nn.Module, list[Site]]
MakeContext = Callable[..., StepContext]
OPTIMISERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=1e-1),
}


def attached(name: str, network: Network, context: StepContext, **config: Any) -> FinetunedMethod:
    method = methods.create(name, **config)
    assert isinstance(method, FinetunedMethod)
    method.attach(*network, context)
    return method


def removed_units(method: Method, strength: float) -> dict[str, int]:
    return {name: int((~kept).sum()) for name, kept in method.plan(strength).kept.items()}


@pytest.mark.parametrize("strength", [0.0, 0.33, 0.5, 0.9])
def test_units_per_site_are_counted_exactly(strength: float, mlp: Network, make_context: MakeContext) -> None:
    expected = {"0": int(strength * 20 + 1e-9), "2": int(strength * 10 + 1e-9)}
    for name in ("magnitude", "random"):
        method = attached(name, mlp, make_context(), finetune=0)
        assert method.traits.trains_once
        assert removed_units(method, strength) == expected


def test_the_smallest_norms_go(mlp: Network, make_context: MakeContext) -> None:
    network, _ = mlp
    method = attached("magnitude", mlp, make_context(), finetune=0)
    norms = network.get_parameter("0.weight").norm(dim=1)
    kept = method.plan(0.5).kept["0"]
    assert norms[kept].min() > norms[~kept].max()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_weights_are_counted_exactly(scope: str, convnet: Network, make_context: MakeContext) -> None:
    network, _ = convnet
    method = attached("magnitude", convnet, make_context(), granularity="weight", scope=scope, finetune=0)
    masks = method.plan(0.9).weight_masks
    assert set(masks) == {"0.weight", "3.weight"}
    removed = {name: int((~mask).sum()) for name, mask in masks.items()}
    if scope == "layer":
        assert removed == {"0.weight": 64, "3.weight": 777}  # floor of 0.9 · 72 and 0.9 · 864
    else:
        assert sum(removed.values()) == 842  # floor of 0.9 · 936
        magnitudes = torch.cat([network.get_parameter(name).abs().flatten() for name in masks])
        kept = torch.cat([mask.flatten() for mask in masks.values()])
        assert magnitudes[kept].min() > magnitudes[~kept].max()


def test_global_units_keep_one_of_every_site(mlp: Network, make_context: MakeContext) -> None:
    network, _ = mlp
    with torch.no_grad():
        # Twelve units far below the mean of their site; raw norms of the other site are smaller than those.
        network.get_parameter("0.weight")[:12] *= 0.1
        network.get_parameter("2.weight").mul_(1e-3)
    method = attached("magnitude", mlp, make_context(), scope="global", finetune=0)
    assert not method.plan(0.4).kept["0"][:12].any()
    assert method.plan(0.4).kept["2"].all()
    assert removed_units(method, 0.95) == {"0": 19, "2": 9}
    for strength in (0.5, 0.8):
        assert sum(removed_units(method, strength).values()) == int(strength * 30)


@pytest.mark.parametrize("name", ["magnitude", "random"])
def test_removals_are_nested_over_strengths(name: str, mlp: Network, make_context: MakeContext) -> None:
    method = attached(name, mlp, make_context(), finetune=0)
    weaker = method.plan(0.3).kept["0"]
    stronger = method.plan(0.7).kept["0"]
    assert not (stronger & ~weaker).any()


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("random", {}),
        ("magnitude", {"granularity": "unit"}),
        ("magnitude", {"granularity": "unit", "scope": "global"}),
        ("magnitude", {"granularity": "weight"}),
        ("magnitude", {"granularity": "weight", "scope": "global"}),
        ("magnitude", {"granularity": "unit", "schedule": "gradual"}),
        ("magnitude", {"granularity": "weight", "schedule": "gradual", "scope": "global"}),
    ],
)
def test_masks_hold_while_the_optimiser_pushes(
    name: str,
    config: dict[str, str],
    optimiser: str,
    convnet: Network,
    make_context: MakeContext,
    train: Callable[..., None],
    noise_batches: Callable[[tuple[int, ...]], list[tuple[Tensor, Tensor]]],
) -> None:
    network, sites = convnet
    names = list(network.state_dict())
    method = attached(name, convnet, make_context(strength=0.5, steps=40), **config)
    held: list[dict[str, Tensor]] = []

    def check() -> None:
        for parameter, mask in method.masks.weights.items():
            assert not network.get_parameter(parameter)[~mask].any()
        for site in sites:
            if site.name in method.masks.kept:
                off = ~method.masks.kept[site.name]
                for layer in (*site.producers, *site.norms):
                    for parameter in network.get_submodule(layer).parameters():
                        assert not parameter[off].any()
        if method.masks:
            held.append(method.masks.state_dict())

    train(method, noise_batches((1, 8, 8)), OPTIMISERS[optimiser], check)
    method.detach()
    for earlier, later in pairwise(held):
        assert not any((later[key] & ~earlier[key]).any() for key in later)  # nothing comes back
    plan = method.plan(0.5)
    masks = {**plan.kept, **plan.weight_masks}
    assert sum(int((~mask).sum()) for mask in masks.values()) == (10 if plan.kept else 468)
    assert all(torch.equal(mask, held[-1][key]) for mask, key in zip(masks.values(), held[-1], strict=True))
    assert list(network.state_dict()) == names
    if plan.kept:  # a removed unit is off
        network.eval()
        normalised = network[:2](torch.randn(2, 1, 8, 8))
        assert not normalised[:, ~plan.kept["0"]].any()


def test_the_mask_takes_effect_when_finetuning_begins(mlp: Network, make_context: MakeContext) -> None:
    network, _ = mlp
    method = attached("magnitude", mlp, make_context(strength=0.5))
    pretrain, finetune = method.phases(100)
    assert (pretrain.fraction, pretrain.shared, pretrain.learning_rate_scale) == (0.75, True, 1.0)
    assert (finetune.fraction, finetune.shared) == (0.25, False)
    method.start_phase(pretrain)
    assert network.get_parameter("0.weight").all()
    method.start_phase(finetune)
    assert not network.get_parameter("0.weight")[~method.masks.kept["0"]].any()
    # Zeroed units would tie in a new ranking; the plan is the stored one, and for this strength alone.
    with torch.no_grad():
        network.get_parameter("0.weight").zero_()
    assert torch.equal(method.plan(0.5).kept["0"], method.masks.kept["0"])
    with pytest.raises(ValueError, match=r"trained for strength 0\.5, not 0\.7"):
        method.plan(0.7)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_is_removed_stays_removed_when_another_unit_dies(
    scope: str, mlp: Network, make_context: MakeContext
) -> None:
    network, _ = mlp
    method = attached("magnitude", mlp, make_context(strength=0.9), schedule="gradual", scope=scope)
    assert isinstance(method, Magnitude)
    method.masks.set(method.select(0.5))
    method.masks.enforce()
    kept = method.masks.kept["0"].clone()
    first_live = int(kept.nonzero()[0])
    with torch.no_grad():
        network.get_parameter("0.weight")[first_live] = 0.0
    assert torch.equal(method.select(0.5).kept["0"], kept)
    assert not (method.select(0.6).kept["0"] & ~kept).any()
    assert not method.select(0.6).kept["0"][first_live]


@pytest.mark.parametrize("name", ["dense", "random", "magnitude"])
def test_plain_training_is_shared(name: str) -> None:
    config = {} if name == "dense" else {"finetune": 0}
    assert tuple(methods.create(name, **config).phases(10)) == (Phase("train", 1.0, shared=True),)


def test_gradual_sparsity_is_cubic() -> None:
    values = [gradual_sparsity(0.8, progress) for progress in (-1, 0, 0.25, 0.5, 1, 2)]
    assert values == pytest.approx([0, 0, 0.4625, 0.7, 0.8, 0.8])


@pytest.mark.parametrize("first_step", [0, 1])
@pytest.mark.parametrize("finetune", [0.0, 0.25])
def test_gradual_schedule(finetune: float, first_step: int, mlp: Network, make_context: MakeContext) -> None:
    """first_step: whether the counter of the loop moves before or after `after_step`."""
    context = make_context(strength=0.6, steps=1000)
    method = attached("magnitude", mlp, context, schedule="gradual", finetune=finetune)
    assert isinstance(method, Magnitude)
    assert not method.traits.trains_once
    assert [phase.name for phase in method.phases(10)] == ["sparsify"]
    targets = {}
    for context.step in range(first_step, 1000 + first_step):
        target = method.scheduled_sparsity()
        if target is not None:
            targets[context.step] = target
    steps, values = list(targets), list(targets.values())
    last = 999 if finetune == 0 else 749
    assert steps[0] == pytest.approx(last / 3, abs=10)
    assert steps[-1] == last
    assert values[-1] == 0.6
    assert values == sorted(values)
    assert all(later - earlier == 10 for earlier, later in pairwise(steps[:-1]))
    middle = (last // 3 + last) / 2
    assert targets[min(steps, key=lambda step: abs(step - middle))] == pytest.approx(0.6 * 0.875, abs=0.01)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("random", {}),
        ("random", {"finetune": 0}),
        ("magnitude", {}),
        ("magnitude", {"granularity": "weight"}),
        ("magnitude", {"schedule": "gradual", "granularity": "weight"}),
        ("targeted-dropout", {}),
        ("targeted-dropout", {"granularity": "weight", "ramp": True}),
    ],
)
def test_a_resumed_training_equals_the_straight_one(
    name: str,
    config: dict[str, Any],
    mlp: Network,
    make_context: MakeContext,
    noise_batches: Callable[[tuple[int, ...]], list[tuple[Tensor, Tensor]]],
) -> None:
    network, sites = mlp
    batches = noise_batches((64,))
    initial = {key: value.clone() for key, value in network.state_dict().items()}

    def steps(method: Method, optimiser: torch.optim.Optimizer, until: int) -> None:
        network.train()
        while method.context.step < until:
            if method.context.step == 20:
                method.start_phase(method.phases(40)[-1])
            inputs, targets = batches[method.context.step % 4]
            optimiser.zero_grad()
            method.training_step(Batch(inputs, targets))
            optimiser.step()
            method.after_step()
            method.context.step += 1

    def fresh(seed: int) -> tuple[Method, torch.optim.Optimizer]:
        method = methods.create(name, **config)
        method.attach(network, sites, make_context(strength=0.5, steps=40, seed=seed))
        return method, torch.optim.SGD(network.parameters(), lr=0.1)

    def finish(
        method: Method, optimiser: torch.optim.Optimizer
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        steps(method, optimiser, 40)
        method.detach()
        plan = method.plan(0.5)
        state = {key: value.clone() for key, value in network.state_dict().items()}
        return state, {**plan.kept, **plan.weight_masks}

    straight = finish(*fresh(seed=3))
    network.load_state_dict(initial)
    method, optimiser = fresh(seed=3)
    steps(method, optimiser, 25)
    saved = {key: value.clone() for key, value in network.state_dict().items()}
    state, random_state = method.state_dict(), method.context.generator.get_state()
    steps(method, optimiser, 30)
    method.detach()
    method, optimiser = fresh(seed=99)
    network.load_state_dict(saved)
    method.load_state_dict(state)
    method.context.generator.set_state(random_state)
    method.context.step = 25
    resumed = finish(method, optimiser)
    for one, other in zip(straight, resumed, strict=True):
        assert list(one) == list(other)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_random_order_is_uniform_and_drawn_from_the_context(mlp: Network, make_context: MakeContext) -> None:
    kept = [
        attached("random", mlp, make_context(seed=seed), finetune=0).plan(0.5).kept["0"].float()
        for seed in range(400)
    ]
    again = attached("random", mlp, make_context(seed=0), finetune=0).plan(0.5).kept["0"].float()
    assert torch.equal(kept[0], again)
    assert not torch.equal(kept[0], kept[1])
    # 400 fair coins per unit: the standard deviation is 0.025.
    assert (torch.stack(kept).mean(dim=0) - 0.5).abs().max() < 0.1


def test_strength_zero_keeps_the_whole_network(convnet: Network, make_context: MakeContext) -> None:
    for name in methods.available():
        method = methods.create(name)
        if method.supports(*convnet) is not None:  # residual branches, which it has not
            assert name == "branch-magnitude"
            continue
        method.attach(*convnet, make_context(strength=0.0))
        method.detach()
        plan = method.plan(0.0)
        assert all(mask.all() for mask in (*plan.kept.values(), *plan.weight_masks.values()))
        assert method.shape(convnet[1], 0.0) is None


def test_thin_dense_is_shaped_before_training(convnet: Network) -> None:
    _, sites = convnet
    method = methods.create("thin-dense")
    plan = method.shape(sites, 0.75)
    assert plan is not None
    assert {name: int(kept.sum()) for name, kept in plan.kept.items()} == {"0": 2, "3": 3}
    assert not method.plan(0.75).kept
