"""What a training starts from in place of fresh weights: a checkpoint, or pretrained weights that a name asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from bench.errors import BadInput
from bench.networks._attention import separated
from bench.networks._torchvision import has_weights, pretrained_state

SHOWN = 3
"""Tensors that a complaint names of each kind."""


def checkpoint_digest(path: Path) -> str:
    """SHA-256 of a checkpoint. Raises BadInput where it cannot be read."""
    return hashlib.sha256(_content(path)).hexdigest()


def load_start(network: nn.Module, name: str, checkpoint: Path | None = None, sha256: str = "") -> None:
    """Put into `network`, built by `name`, the checkpoint (a state dict as safetensors) or the weights that its name
    asks for; neither leaves it as it is. sha256: what the file has to be.

    Raises BadInput where both are given, they cannot be had, or they do not fit the network.
    """
    if checkpoint is None:
        if has_weights(name):
            _load(network, pretrained_state(name), f"the weights of {name}")
        return
    if has_weights(name):
        raise BadInput(f"{checkpoint}: the network {name!r} has weights to start from already")
    content = _content(checkpoint)
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise BadInput(f"{checkpoint}: has changed since the run was planned")
    try:
        state: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise BadInput(f"{checkpoint}: is not a readable .safetensors file ({error})") from error
    _load(network, state, f"{checkpoint}: the checkpoint")


def _content(path: Path) -> bytes:
    if path.suffix != ".safetensors":
        raise BadInput(
            f"{path}: must be a state dict in a .safetensors file (a pickle can run code, none is read)"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error


def _load(network: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    own, state = network.state_dict(), separated(network, state)
    # Old files lack the counter of batch norm's batches, which nothing here reads.
    missing = [key for key in own if key not in state and not key.endswith(".num_batches_tracked")]
    foreign = sorted(key for key in state if key not in own)  # a file has no order of its own
    shapes = [
        f"{key} is {tuple(state[key].shape)}, must be {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and value.shape != state[key].shape
    ]
    wild = sorted(
        key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())
    )
    faults = [
        f"{said}{_some(found)}"
        for said, found in (
            ("", shapes),
            ("it lacks ", missing),
            ("the network has no ", foreign),
            ("not finite: ", wild),
        )
        if found
    ]
    if faults:
        raise BadInput(f"{what} does not fit the network: {'; '.join(faults)}")
    with torch.no_grad():
        network.load_state_dict({**own, **state})


def _some(words: list[str]) -> str:
    more = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f" and {more} more" if more > 0 else "")
