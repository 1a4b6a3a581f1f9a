from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import bench.networks
from bench import networks
from bench.errors import BadInput
from bench.networks import _build
from bench.networks.digits_cnn import DigitsCNN

OWN = """
import torch
from torch import nn

def linear(input_shape, classes):
    c, h, w = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, classes))

def wide(input_shape, classes):
    return linear(input_shape, classes + 1)

def picky(input_shape, classes):
    return nn.Conv2d(7, classes, 1)

class Single(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1).float())

def single(input_shape, classes):
    c, h, w = input_shape
    return Single(c * h * w, classes)

class Versioned(nn.Sequential):
    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        pass

def versioned(input_shape, classes):
    return Versioned(linear(input_shape, classes))

def precise(input_shape, classes):
    network = linear(input_shape, classes)
    network.register_buffer("table", torch.ones(2, dtype=torch.complex128))
    return network

def no_module(input_shape, classes):
    return 3

def no_arguments():
    return nn.Identity()

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the working directory, which is not on the path."""
    (tmp_path / "own_nets.py").write_text(OWN)
    (tmp_path / "broken_nets.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    for name in ("own_nets", "broken_nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "own_nets"


def refusal(name: str, input_shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10) -> str:
    with pytest.raises(BadInput) as caught:
        networks.build(name, input_shape, classes)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_the_networks_of_the_suite_are_there() -> None:
    assert set(networks.available()) >= {"digits-cnn", "lenet5", "mlp-300-100", "mlp-500-300"}


def test_the_same_seed_gives_the_same_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        network = networks.build("digits-cnn", (1, 8, 8), 10)
        return torch.cat([parameter.flatten() for parameter in network.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_building_draws_nothing_but_the_weights_and_leaves_statistics_alone() -> None:
    torch.manual_seed(0)
    DigitsCNN((1, 8, 8), 10)
    expected = torch.rand(3)
    torch.manual_seed(0)
    network = networks.build("digits-cnn", (1, 8, 8), 10)
    assert torch.equal(torch.rand(3), expected)
    assert network.training
    assert network.get_submodule("bn1").num_batches_tracked == 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_unknown_name_gets_the_nearest() -> None:
    assert (
        refusal("lenet-5")
        == "unknown network 'lenet-5' (did you mean 'lenet5'?); or torchvision:MODEL, or package.module:factory"
    )


@pytest.mark.parametrize(
    ("name", "input_shape", "expected"),
    [
        ("lenet5", (1, 8, 8), "network 'lenet5': needs images of at least 16×16, got 8×8"),
        ("lenet5", (3, 15, 40), "network 'lenet5': needs images of at least 16×16, got 15×40"),
        ("digits-cnn", (3, 1, 9), "network 'digits-cnn': needs images of at least 2×2, got 1×9"),
    ],
)
def test_images_that_are_too_small(name: str, input_shape: tuple[int, int, int], expected: str) -> None:
    assert refusal(name, input_shape) == expected


def test_the_smallest_image_of_lenet5_fits() -> None:
    assert networks.build("lenet5", (1, 16, 16), 3)(torch.rand(2, 1, 16, 16)).shape == (2, 3)


def test_a_network_of_the_users_own(own: str) -> None:
    path = list(sys.path)
    network = networks.build(f"{own}:linear", (3, 4, 5), 7)
    assert network(torch.rand(2, 3, 4, 5)).shape == (2, 7)
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "own_nets:liner",
            "network 'own_nets:liner': 'own_nets' has no function 'liner' (did you mean 'linear'?)",
        ),
        (
            "own_nets:number",
            "network 'own_nets:number': 'own_nets' has no function 'number' (did you mean 'linear'?)",
        ),
        ("own_nets:wide", "network 'own_nets:wide': gives (1, 11) for one image, must be (1, 10)"),
        (
            "own_nets:picky",
            "network 'own_nets:picky': does not run on images of 8×8 with 1 channel (RuntimeError",
        ),
        (
            "own_nets:single",
            "network 'own_nets:single': does not run in float64, in which its compact form is proven (RuntimeError",
        ),
        (
            "own_nets:versioned",
            "network 'own_nets:versioned': its state holds '_extra_state', dict, which cannot be stored",
        ),
        (
            "own_nets:precise",
            "network 'own_nets:precise': its state holds 'table', torch.complex128, which cannot be stored",
        ),
        (
            "own_nets:no_module",
            "network 'own_nets:no_module': the factory gives a int, not a torch.nn.Module",
        ),
        (
            "own_nets:no_arguments",
            "network 'own_nets:no_arguments': cannot be built for images of 8×8 with 1 channel",
        ),
        (
            "broken_nets:net",
            "network 'broken_nets:net': 'broken_nets' does not import (ModuleNotFoundError: No module",
        ),
        (
            "no_such_nets:net",
            "network 'no_such_nets:net': 'no_such_nets' does not import (ModuleNotFoundError",
        ),
        (":net", "network ':net': '' does not import (ValueError"),
    ],
)
def test_a_network_of_the_users_own_that_does_not_work(own: str, name: str, expected: str) -> None:
    assert refusal(name).startswith(expected)


def test_a_file_dropped_into_the_folder_is_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dropped.py").write_text(OWN + "\nNETWORKS = {'linear': linear}\n")
    monkeypatch.setattr(bench.networks, "__path__", [*bench.networks.__path__, str(tmp_path)])
    _build._factories.cache_clear()
    try:
        assert "linear" in networks.available()
        assert networks.build("linear", (1, 2, 2), 3)(torch.rand(2, 1, 2, 2)).shape == (2, 3)
    finally:
        _build._factories.cache_clear()
