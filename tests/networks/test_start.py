"""A checkpoint to start from: taken over whole, or refused with what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench import networks
from bench.errors import BadInput

NAME, SHAPE = "digits-cnn", (1, 8, 8)
State = dict[str, Tensor]


def trained() -> State:
    torch.manual_seed(5)
    return dict(networks.build(NAME, SHAPE, 10).state_dict())


def load(path: Path, sha256: str = "", name: str = NAME) -> State:
    torch.manual_seed(0)
    network = networks.build(NAME, SHAPE, 10)
    networks.load_start(network, name, path, sha256)
    return dict(network.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_checkpoint_is_taken_over(tmp_path: Path, dtype: torch.dtype) -> None:
    state, path = trained(), tmp_path / "net.safetensors"
    save_file(
        {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}, path
    )
    loaded = load(path, networks.checkpoint_digest(path))
    assert all(
        torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype for key, value in state.items()
    )


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file({key: value for key, value in trained().items() if "num_batches" not in key}, path)
    assert torch.equal(load(path)["conv1.weight"], trained()["conv1.weight"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s | {"fc.weight": torch.ones(7, 32)}, "fc.weight is (7, 32), must be (10, 32)"),
        (lambda s: {k: v for k, v in s.items() if k != "fc.bias"}, "it lacks fc.bias"),
        (lambda s: s | {"head.bias": torch.ones(1)}, "the network has no head.bias"),
        (lambda s: s | {"fc.bias": torch.full((10,), torch.nan)}, "not finite: fc.bias"),
        (lambda s: {}, "it lacks conv1.weight, bn1.weight, bn1.bias and 14 more"),
    ],
)
def test_a_checkpoint_that_does_not_fit(change: Callable[[State], State], says: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(change(trained()), path)
    with pytest.raises(BadInput) as caught:
        load(path)
    assert f"net.safetensors: the checkpoint does not fit the network: {says}" in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    path, pickled = tmp_path / "net.safetensors", tmp_path / "net.pth"
    with pytest.raises(BadInput, match=r"cannot be read \(No such file"):
        load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(BadInput, match=r"is not a readable \.safetensors file"):
        load(path)
    torch.save(trained(), pickled)
    with pytest.raises(BadInput, match=r"must be a state dict in a \.safetensors file"):
        load(pickled)
    save_file(trained(), path)
    with pytest.raises(BadInput, match="has changed since the run was planned"):
        load(path, "0" * 64)
    with pytest.raises(BadInput, match="has weights to start from already"):
        load(path, name="torchvision:resnet18@DEFAULT")


def test_without_a_start_nothing_changes() -> None:
    torch.manual_seed(0)
    network = networks.build(NAME, SHAPE, 10)
    before = [value.clone() for value in network.state_dict().values()]
    networks.load_start(network, NAME)
    assert all(map(torch.equal, network.state_dict().values(), before))
