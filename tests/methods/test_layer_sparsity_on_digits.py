"""Layers go for real: `mlp-deep` on the digits, at one strength, over three seeds."""

from __future__ import annotations

import torch
from torch import nn

import methods
from bench import data, networks
from bench.compaction import compact, find_sites
from bench.data.batches import ordered
from bench.measure.accuracy import score
from bench.training.loop import Loop
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe
from bench.training.seeds import stream

SEEDS, EPOCHS, STRENGTH = (0, 1, 2), 30, 1.1


def compacted(name: str, strength: float, seed: int, **config: float) -> tuple[float, nn.Module]:
    """Test accuracy and the compact network."""
    torch.set_num_threads(1)
    dataset = data.load("digits", None)
    torch.manual_seed(stream(seed, "init"))
    network = networks.build("mlp-deep", dataset.input_shape, dataset.classes)
    example = torch.zeros(1, *dataset.input_shape)
    method = methods.create(name, **config)
    recipe = Recipe(epochs=EPOCHS, batch_size=64, weight_decay=1e-4)
    given = None if method.traits.trains_once else strength
    sites = find_sites(network, example)
    loop = Loop(network, method, sites, dataset, recipe, seed, torch.device("cpu"), given)
    loop.run(plan_phases(method.phases(EPOCHS), EPOCHS))
    method.detach()
    result = compact(network, method.plan(strength), example)
    assert result.certificate.passed
    test = data.load_test("digits", None)
    return score(result.network, ordered(test, 1024, loop.normalise)).accuracy, result.network


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def as_many_at_random(count: int) -> float:
    """The fraction to remove of the six layers of 100 units for as many parameters, never fewer."""
    return 1 - next(h for h in range(1, 101) if 65 * h + 5 * (h + 1) * h + (h + 1) * 10 >= count) / 100


def test_layers_merge_and_accuracy_stays() -> None:
    accuracies: dict[str, list[float]] = {"dense": [], "layer-sparsity": [], "random": []}
    for seed in SEEDS:
        dense, _ = compacted("dense", 0.0, seed)
        ours, thin = compacted("layer-sparsity", STRENGTH, seed)
        random, thinner = compacted("random", as_many_at_random(parameters(thin)), seed, finetune=0.3)
        matrices = sum(isinstance(module, nn.Linear) for module in thin.modules())
        print(f"\nseed {seed}: {matrices} matrices, {dense:.4f} dense, {ours:.4f} ours, {random:.4f} random")
        assert matrices <= 5
        assert parameters(thin) <= 40_000
        assert 0 <= parameters(thinner) - parameters(thin) <= 700
        for name, accuracy in (("dense", dense), ("layer-sparsity", ours), ("random", random)):
            accuracies[name].append(accuracy)
    mean = {name: sum(values) / len(values) for name, values in accuracies.items()}
    assert mean["layer-sparsity"] > mean["dense"] - 0.012
    assert mean["layer-sparsity"] > mean["random"] + 0.003
