"""Training on a CUDA device: recorded steps, bf16, and a run that is resumed inside an epoch."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import methods
from bench import data, networks
from bench.compaction import find_sites
from bench.device import place
from bench.training.loop import Loop
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = torch.device("cuda")
RECIPE = Recipe(epochs=4, batch_size=128, optimizer="sgd", learning_rate=0.05)


@pytest.fixture(autouse=True)
def deterministic() -> object:
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False


def open_loop(name: str, recipe: Recipe = RECIPE, checkpoint: Path | None = None) -> Loop:
    digits = data.load("digits", None)
    dataset = replace(
        digits, train=digits.train.to(CUDA), validation=digits.validation.to(CUDA), augment=True
    )
    torch.manual_seed(0)
    network = place(networks.build("digits-cnn", dataset.input_shape, dataset.classes), CUDA)
    method = methods.create(name)
    sites = find_sites(network, torch.zeros(1, *dataset.input_shape, device=CUDA))
    strength = None if method.traits.trains_once else method.strengths[1]
    return Loop(network, method, sites, dataset, recipe, 0, CUDA, strength, checkpoint, math.inf)


def run(loop: Loop) -> dict[str, torch.Tensor]:
    epochs = loop.recipe.epochs
    loop.run(plan_phases(loop.method.phases(epochs), epochs))
    return {name: value.clone() for name, value in loop.network.state_dict().items()}


CAPTURABLE = [name for name in methods.available() if methods.create(name).capturable]


@pytest.mark.parametrize("name", CAPTURABLE)
def test_recorded_steps_are_the_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to what an optimiser with its rate on the device rounds differently."""
    recorded = open_loop(name)
    assert recorded.captured
    found = run(recorded)
    assert not recorded.progress.notes, recorded.progress.notes
    plain = open_loop(name)
    monkeypatch.setattr(type(plain.method), "capturable", False)
    expected = run(plain)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", methods.available())
def test_every_method_trains_with_bf16(name: str) -> None:
    recipe = RECIPE.model_copy(update={"precision": "bf16", "epochs": 12})
    loop = open_loop(name, recipe)
    run(loop)
    assert math.isfinite(loop.progress.history[-1]["train_loss"])


@pytest.mark.parametrize("name", ["dense", "hard-concrete", "serene", "plasticity"])
def test_resumed_inside_an_epoch(name: str, tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    expected = run(open_loop(name))
    first = open_loop(name, checkpoint=tmp_path / "checkpoint")
    go_on = first.method.after_step

    def after_step() -> None:
        go_on()
        if first.context.step == 16:
            first.checkpoints.seconds = 0.0
        elif first.context.step > 16:
            raise Cut

    first.method.after_step = after_step  # type: ignore[method-assign]
    with pytest.raises(Cut):
        run(first)
    found = run(open_loop(name, checkpoint=tmp_path / "checkpoint"))
    # Where a step is recorded, the first ones after a resume run as they are: equal but for rounding.
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


def test_steps_do_not_wait_for_the_device() -> None:
    loop = open_loop("dense", RECIPE.model_copy(update={"epochs": 1}))
    step = loop.method.training_step

    def watched(batch: object) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error")
        return step(batch)  # type: ignore[arg-type]

    loop.method.training_step = watched  # type: ignore[method-assign, assignment]
    try:
        with pytest.raises(
            RuntimeError, match="synchronizing"
        ):  # the mean of the epoch, and nothing before it
            run(loop)
        assert loop.context.step == loop.steps_per_epoch
    finally:
        torch.cuda.set_sync_debug_mode("default")
