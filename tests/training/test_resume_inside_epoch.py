"""A training that is cut off inside an epoch goes on as if nothing had happened, whatever draws random numbers."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import methods
from bench import data
from bench.compaction import find_sites
from bench.device import place
from bench.training.checkpoint import read_state, write_state
from bench.training.loop import Loop
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=256, optimizer="sgd", learning_rate=0.1, label_smoothing=0.1)


def network_with_dropout() -> nn.Module:
    """With everything that has a state or draws numbers: running statistics and dropout; and placed as a cell places
    it, so that the weights of a convolution lie in another order than in a file."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    return place(network, torch.device("cpu"))


def open_loop(method_name: str, checkpoint: Path | None, optimizer: str = "sgd") -> Loop:
    dataset = replace(data.load("digits", None), augment=True)
    network = network_with_dropout()
    method = methods.create(method_name)
    sites = find_sites(network, torch.zeros(1, 1, 8, 8))
    strength = None if method.traits.trains_once else 0.1
    device, recipe = torch.device("cpu"), RECIPE.model_copy(update={"optimizer": optimizer})
    return Loop(network, method, sites, dataset, recipe, 0, device, strength, checkpoint, math.inf)


def run(loop: Loop) -> dict[str, torch.Tensor]:
    loop.run(plan_phases(loop.method.phases(RECIPE.epochs), RECIPE.epochs))
    return {name: value.clone() for name, value in loop.network.state_dict().items()}


class Cut(Exception):
    pass


def cut_at(loop: Loop, step: int) -> None:
    """The last thing on disk is the state after `step` steps; the step after it is lost."""
    go_on = loop.method.after_step

    def after_step() -> None:
        go_on()
        if loop.context.step == step:
            loop.checkpoints.seconds = 0.0
        elif loop.context.step > step:
            raise Cut

    loop.method.after_step = after_step  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("dense", "sgd"), ("dense", "adam"), ("hard-concrete", "sgd"), ("beta-bernoulli", "sgd")],
)
@pytest.mark.parametrize("step", [1, 8])
def test_cut_inside_an_epoch(method: str, optimizer: str, step: int, tmp_path: Path) -> None:
    straight = open_loop(method, None, optimizer)
    assert step % straight.steps_per_epoch
    expected = run(straight)
    first = open_loop(method, tmp_path / "checkpoint", optimizer)
    cut_at(first, step)
    with pytest.raises(Cut):
        run(first)
    torch.manual_seed(12345)  # what another process would find
    second = open_loop(method, tmp_path / "checkpoint", optimizer)
    found = run(second)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert second.progress.history == straight.progress.history
    assert second.progress.steps == straight.progress.steps


def test_what_was_trained_in_parts_goes_on_in_as_many(tmp_path: Path) -> None:
    straight = open_loop("dense", None)
    straight.parts = 4
    expected = run(straight)
    first = open_loop("dense", tmp_path / "checkpoint")
    first.parts = 4
    cut_at(first, 8)
    with pytest.raises(Cut):
        run(first)
    second = open_loop("dense", tmp_path / "checkpoint")
    found = run(second)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert second.progress.notes == straight.progress.notes
    assert len(second.progress.notes) == 1


def left_by_a_cut(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint of a run that was cut off behind its third step."""
    first = open_loop("dense", checkpoint)
    cut_at(first, 3)
    with pytest.raises(Cut):
        run(first)
    state = read_state(checkpoint)
    assert state is not None
    return state


def test_the_streams_matter(tmp_path: Path) -> None:
    """The check of the checks: without its streams a run does not go on as before."""
    expected = run(open_loop("dense", None))
    state = left_by_a_cut(tmp_path / "checkpoint")
    for name in ("network", "augmentation"):
        streams = dict(state["position"]["streams"])
        streams[name] = torch.Generator().manual_seed(7).get_state()
        broken = {**state, "position": {**state["position"], "streams": streams}}
        write_state(tmp_path / "checkpoint", broken)
        found = run(open_loop("dense", tmp_path / "checkpoint"))
        assert not all(torch.equal(found[key], value) for key, value in expected.items())


def test_the_checkpoint_of_another_kind_of_device_is_left(tmp_path: Path) -> None:
    """The state of a generator of a GPU has 16 bytes, and means nothing to one of a CPU."""
    expected = run(open_loop("dense", None))
    state = left_by_a_cut(tmp_path / "checkpoint")
    assert state["position"]["device"] == "cpu"
    streams = dict.fromkeys(("method", "augmentation", "network-cuda"), torch.zeros(16, dtype=torch.uint8))
    streams = {**state["position"]["streams"], **streams}
    there = {**state["position"], "device": "cuda", "streams": streams}
    write_state(tmp_path / "checkpoint", {**state, "position": there})
    second = open_loop("dense", tmp_path / "checkpoint")
    found = run(second)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert second.progress.steps == 2 * second.steps_per_epoch


def test_killed_while_writing_leaves_the_former_state(tmp_path: Path) -> None:
    """SIGKILL between writing and renaming, in a process of its own."""
    file = tmp_path / "checkpoint"
    write_state(file, {"step": 1})
    script = (
        "import os, signal, pathlib\n"
        "from bench.training import checkpoint\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"checkpoint.write_state(pathlib.Path({str(file)!r}), {{'step': 2}})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_state(file) == {"step": 1}
