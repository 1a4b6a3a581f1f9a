"""What a recipe says is what is trained, and a setting that came later leaves older recipes as they were."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import methods
from bench import data, networks
from bench.compaction import find_sites
from bench.training.loop import Loop
from bench.training.optimizers import Optimizers
from bench.training.phases import PlannedPhase, plan_phases
from bench.training.recipe import LATER, Recipe
from bench.training.schedule import learning_rate_factor
from bench.training.step import EagerStep
from methods.base import Batch, Evaluation, Phase, Request, Site, StepContext
from methods.dense import Dense


def test_later_settings_are_left_out_at_their_defaults() -> None:
    plain = Recipe(epochs=3).model_dump(mode="json")
    assert not set(LATER) & set(plain)
    assert set(plain) | set(LATER) == set(Recipe.model_fields)
    told = {**plain, "label_smoothing": 0.1, "decay_norm_and_bias": False}
    assert Recipe(**told).model_dump(mode="json") == told


def test_cosine_ends_on_its_floor() -> None:
    recipe = Recipe(epochs=10, learning_rate_floor=0.1)
    assert learning_rate_factor(recipe, 0, 100, 10) == 1.0
    assert learning_rate_factor(recipe, 100, 100, 10) == pytest.approx(0.1)


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2)


def test_biases_and_norms_are_spared_decay_on_request() -> None:
    recipe = Recipe(
        epochs=1,
        optimizer="sgd",
        momentum=0.0,
        learning_rate=0.5,
        weight_decay=0.1,
        decay_norm_and_bias=False,
    )
    network = Norms()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    for spared, expected in ((recipe, 1.0), (recipe.model_copy(update={"decay_norm_and_bias": True}), 0.95)):
        optimizers = Optimizers(network, [], spared, 1.0)
        optimizers.step()
        assert network.head.bias[0].item() == pytest.approx(expected)
        assert network.norm.weight[0].item() == pytest.approx(expected)
    assert network.head.weight[0, 0].item() == pytest.approx(0.95**2)
    assert network.conv.weight.flatten()[0].item() == pytest.approx(0.95**2)


@pytest.mark.parametrize("shape", [list, iter, lambda parameters: parameters[0]])
def test_what_a_method_adds_may_come_in_any_form_that_torch_takes(
    shape: Callable[[list[nn.Parameter]], object],
) -> None:
    """A list, an iterator (`module.parameters()`) or a single tensor; what is the network's own is then not taken
    twice."""
    network, gate = nn.Linear(3, 2, bias=False), nn.Parameter(torch.ones(2))
    recipe = Recipe(epochs=1, optimizer="sgd", momentum=0.0, learning_rate=0.5)
    weight = network.weight.detach().clone()
    groups = [{"params": shape([gate])}, {"params": shape([network.weight]), "lr": 0.25}]
    optimizers = Optimizers(network, groups, recipe, 1.0)
    for parameter in (gate, network.weight):
        parameter.grad = torch.ones_like(parameter)
    optimizers.step()
    assert gate.tolist() == [0.5, 0.5]
    assert torch.equal(network.weight, weight - 0.25)


def loop_of(recipe: Recipe, augment: bool = False) -> Loop:
    dataset = replace(data.load("digits", None), augment=augment)
    torch.manual_seed(0)
    network = networks.build("mlp-300-100", dataset.input_shape, dataset.classes)
    return Loop(network, methods.create("dense"), [], dataset, recipe, 0, torch.device("cpu"))


def weights(loop: Loop) -> Tensor:
    loop.run(plan_phases(loop.method.phases(1), 1))
    return loop.network.get_parameter("fc1.weight").detach()


def test_smoothing_is_of_the_training_loss_alone() -> None:
    loop = loop_of(Recipe(epochs=1, batch_size=512, label_smoothing=0.2))
    logits, targets = torch.randn(5, 10), torch.arange(5)
    expected = functional.cross_entropy(logits, targets, label_smoothing=0.2)
    assert torch.equal(loop.context.task_loss(logits, targets), expected)
    weights(loop)
    images = loop.normalise(loop.data.validation.images)
    with torch.no_grad():
        plain = functional.cross_entropy(loop.network.eval()(images), loop.data.validation.labels)
    assert loop.validate().loss == pytest.approx(plain.item(), rel=1e-5)


def test_augmentation_by_the_recipe_or_the_data_set() -> None:
    recipe = Recipe(epochs=1, batch_size=512)
    crops = recipe.model_copy(update={"augmentation": "crop-and-flip"})
    none = recipe.model_copy(update={"augmentation": "none"})
    plain, augmented = weights(loop_of(recipe)), weights(loop_of(recipe, augment=True))
    assert not torch.equal(plain, augmented)
    assert torch.equal(weights(loop_of(crops)), augmented)
    assert torch.equal(weights(loop_of(none, augment=True)), plain)


def test_gradients_of_parts_are_those_of_the_batch() -> None:
    recipe = Recipe(epochs=1, batch_size=500, optimizer="sgd", gradient_clip=0.5)
    whole, in_parts = loop_of(recipe), loop_of(recipe)
    in_parts.parts = 3
    torch.testing.assert_close(weights(in_parts), weights(whole), rtol=0, atol=1e-6)
    assert in_parts.progress.history[0]["train_loss"] == pytest.approx(
        whole.progress.history[0]["train_loss"], rel=1e-5
    )
    assert "3 parts of at most 167 images" in in_parts.progress.notes[0]
    assert not whole.progress.notes


def test_no_part_is_a_single_image() -> None:
    """Of which batch normalisation knows no deviation; 70 images in equal parts but for a smaller last have one."""
    recipe = Recipe(epochs=1, batch_size=128, optimizer="sgd")
    loop, seen = loop_of(recipe), list[int]()
    step = loop.method.training_step

    def watched(batch: Batch) -> Tensor:
        seen.append(len(batch.targets))
        return step(batch)

    loop.method.training_step = watched  # type: ignore[method-assign]
    for parts in (16, 32, 64, 128):
        in_parts = EagerStep(loop.method, Optimizers(loop.network, [], recipe, 1.0), 0.0, parts)
        in_parts(Batch(torch.zeros(70, 1, 8, 8), torch.zeros(70, dtype=torch.int64)))
        assert sum(seen) == 70
        assert len(seen) == min(parts, 35)
        assert max(seen) - 1 <= min(seen) >= 2
        seen.clear()


def test_parts_add_up_for_what_no_optimiser_holds() -> None:
    """The sensitivities of a method that moves them itself."""

    def sensitivities(parts: int) -> Tensor:
        dataset = data.load("digits", None)
        torch.manual_seed(0)
        network = networks.build("mlp-300-100", dataset.input_shape, dataset.classes)
        method = methods.create("heterogeneous-sensitivity")
        recipe = Recipe(epochs=1, batch_size=300, optimizer="sgd")
        sites = find_sites(network, torch.zeros(1, *dataset.input_shape))
        loop = Loop(network, method, sites, dataset, recipe, 0, torch.device("cpu"), 0.1)
        loop.parts = parts
        loop.run(plan_phases(method.phases(1), 1))
        return torch.cat([s.detach() for s in method.leaves()])

    whole = sensitivities(1)
    assert (whole - 1).abs().max() > 1e-3
    torch.testing.assert_close(sensitivities(3), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("allowed", [True, False])
def test_bf16_where_the_method_allows_it(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dense, "autocast", allowed)
    loop = loop_of(Recipe(epochs=1, batch_size=512, precision="bf16"))
    seen: set[tuple[bool, torch.dtype]] = set()

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.add((loop.network.training, output.dtype))

    handle = loop.network.get_submodule("fc1").register_forward_hook(watch)
    changed = weights(loop)
    handle.remove()
    trained = torch.bfloat16 if allowed else torch.float32
    assert seen == {(True, trained), (False, torch.float32)}
    assert changed.dtype == torch.float32
    assert math.isfinite(loop.progress.history[0]["validation_loss"])
    assert loop.progress.notes == ([] if allowed else ["trained in float32: dense does not run in bf16"])
    assert not loop.network._forward_hooks
    assert not loop.network._forward_pre_hooks


def test_notes_of_what_comes_after_a_shared_pretraining(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which another method has trained, and whole."""
    monkeypatch.setattr(Dense, "autocast", False)
    loop = loop_of(Recipe(epochs=3, batch_size=512, precision="bf16"))
    loop.parts = 2
    loop.run([PlannedPhase(Phase("finetune", 1 / 3), 2, 1)])
    precision, parts = loop.progress.notes
    assert precision == "trained, but for the shared pretraining, in float32: dense does not run in bf16"
    assert parts.startswith("out of memory: from epoch 3 on, gradients were summed over 2 parts")


class Counting(Dense):
    """Keeps what it is shown."""

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        super().attach(network, sites, context)
        self.seen: list[int] = []
        self.ends: list[tuple[int, int]] = []

    def training_step(self, batch: Batch) -> Tensor:
        self.seen.append(len(batch.targets))
        return super().training_step(batch)

    def after_epoch(self, validate: Callable[[], Evaluation]) -> Request | None:
        self.ends.append((self.context.phase_step, len(self.seen)))
        return None


def test_epochs_of_a_part_of_the_images() -> None:
    """As many ends of epochs, as much fewer images; the schedule runs its whole course and the loss is a mean."""
    digits = data.load("digits")
    whole = len(digits.train)
    recipe = Recipe(epochs=3, epoch_fraction=0.3, batch_size=64, optimizer="sgd", learning_rate=0.1)
    images = round(0.3 * whole)
    steps = math.ceil(images / 64)
    method, network = Counting(), networks.build("mlp-300-100", digits.input_shape, 10)
    loop = Loop(network, method, [], digits, recipe, 0, torch.device("cpu"))
    assert loop.context.train_size == whole
    progress = loop.run(plan_phases(method.phases(3), 3))
    assert method.seen == 3 * ([64] * (steps - 1) + [images - 64 * (steps - 1)])
    assert method.ends == [(steps, steps), (2 * steps, 2 * steps), (3 * steps, 3 * steps)]
    assert loop.context.steps == progress.steps == len(loop.context.learning_rates) == 3 * steps
    assert [0.1 < entry["train_loss"] < 3 for entry in progress.history] == [True] * 3


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, math.nan])
def test_an_epoch_is_a_part_of_the_train_split(fraction: float) -> None:
    with pytest.raises(ValueError, match="epoch_fraction"):
        Recipe(epochs=3, epoch_fraction=fraction)
