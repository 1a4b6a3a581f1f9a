"""Training on a CUDA device: recorded steps, bf16, and a run that is resumed inside an epoch."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import methods
from bench import data, networks
from bench.device import place, use
from bench.offer import all_sites, offered_sites
from bench.training.loop import Loop
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe
from bench.training.step import WARM_UP, GraphStep
from methods.base import Batch
from tests.contract.cases import Case

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
    case = Case(name)
    network_name = case.network  # may build it to find out, which draws
    torch.manual_seed(0)
    network = place(networks.build(network_name, dataset.input_shape, dataset.classes), CUDA)
    method, example = case.create(), torch.zeros(1, *dataset.input_shape, device=CUDA)
    sites = offered_sites(all_sites(network, example), method, streams=False)
    strength = None if method.traits.trains_once else method.strengths[:2][-1]
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


def test_after_a_failed_recording_steps_go_on_as_they_are() -> None:
    """A wait for the device breaks the capture: its stream is left, and what draws is not taken to be recorded."""
    own, stream = torch.Generator(CUDA), torch.cuda.current_stream()
    weight = torch.ones(64, 2, device=CUDA, requires_grad=True)

    def eager(given: Batch) -> torch.Tensor:
        noise = torch.rand(2, device=CUDA) + torch.rand(2, device=CUDA, generator=own)
        loss = (given.inputs @ (weight * noise).T).mean()
        loss.backward()
        return torch.full((), loss.item())

    failures: list[str] = []
    step = GraphStep(eager, 4, [own], CUDA, failures.append)
    batch = Batch(torch.ones(4, 2, device=CUDA), torch.zeros(4, dtype=torch.int64, device=CUDA))
    losses = [step(batch).item() for _ in range(WARM_UP + 3)]
    assert len(failures) == 1
    assert torch.cuda.current_stream() == stream
    assert all(0 < loss < 4 for loss in losses)
    assert len(set(losses)) == len(losses)
    torch.cuda.empty_cache()  # raises where the allocator thinks that a capture goes on


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_second_device() -> None:
    """Streams and captures are those of the device in use."""
    second = use("cuda:1")
    try:
        step = GraphStep(lambda given: given.inputs.sum(), 4, [], second, pytest.fail)
        for value in range(WARM_UP + 3):
            inputs = torch.full((4, 2), float(value), device=second)
            batch = Batch(inputs, torch.zeros(4, dtype=torch.int64, device=second))
            assert step(batch).item() == 8 * value
    finally:
        use("cuda:0")
