"""From a name to a network that fits the images and classes of a data set."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bench.errors import BadInput, nearest
from bench.folder import collect, in_one_line
from bench.networks._torchvision import PREFIX, build_model

Factory = Callable[[tuple[int, int, int], int], nn.Module]
"""(input_shape (C, H, W), classes) → network: float (N, C, H, W) → logits (N, classes)."""


def available() -> list[str]:
    """Names of the networks that the files of `bench/networks` provide, sorted."""
    return sorted(_factories())


def build(name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A fresh network in training mode, on the CPU, initialised from torch's global generator: the caller
    seeds that.

    name: one of `available()`, `torchvision:MODEL` for one of torchvision's, or `package.module:factory` for one of the
    user's own (modules of the working directory included). Raises BadInput where there is no such network or it does
    not fit the images. Nothing is downloaded: the weights of `torchvision:MODEL@WEIGHTS` are a matter of `load_start`.
    """
    network = _made(name, input_shape, classes)
    _check_output(name, network, input_shape, classes)
    if ":" in name and not name.startswith(PREFIX):
        _check_own(name, network, input_shape)
    return network.train()


def outline(name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The layers of a network and their shapes, without weights (on torch's meta device) and without a trial run: for
    counting. Raises BadInput as `build` does."""
    with torch.device("meta"):
        return _made(name, input_shape, classes)


def own_digest(name: str, network: nn.Module) -> str:
    """Of a user's own network: of its layers and shapes, and of the file that its factory is imported from. One that
    was edited is another network."""
    layers = [(path, type(module).__qualname__) for path, module in network.named_modules()]
    shapes = [(key, tuple(value.shape)) for key, value in network.state_dict().items()]
    digest = hashlib.sha256(str([layers, shapes]).encode())
    file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    if file is not None:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]


def check_unchanged(name: str, network: nn.Module, digest: str) -> None:
    """Raises BadInput where a network of the user's own is not what was planned with. digest: `own_digest` of then;
    empty for any other network."""
    if digest and own_digest(name, network) != digest:
        raise BadInput(f"network {name!r}: has changed since the run was planned")


def _made(name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    factory = _factory(name)
    try:
        network = factory(input_shape, classes)
    except BadInput as error:
        raise BadInput(f"network {name!r}: {error}") from error
    except Exception as error:
        raise BadInput(
            f"network {name!r}: cannot be built for {_words(input_shape)} ({in_one_line(error)})"
        ) from error
    if not isinstance(network, nn.Module):
        raise BadInput(
            f"network {name!r}: the factory gives a {type(network).__name__}, not a torch.nn.Module"
        )
    return network


def _factory(name: str) -> Factory:
    if name.startswith(PREFIX):
        return functools.partial(build_model, name)
    if ":" in name:
        return _imported(name)
    if name not in _factories():
        raise BadInput(
            f"unknown network {name!r}{nearest(name, available())}; or torchvision:MODEL, or package.module:factory"
        )
    return _factories()[name]


@functools.cache
def _factories() -> dict[str, Factory]:
    return collect("bench.networks", "NETWORKS")


def _imported(name: str) -> Factory:
    module_name, _, attribute = name.partition(":")
    # A console script lacks the working directory on its path; last, so that nothing of ours is shadowed.
    sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise BadInput(f"network {name!r}: {module_name!r} does not import ({in_one_line(error)})") from error
    finally:
        sys.path.remove(os.getcwd())
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        raise BadInput(
            f"network {name!r}: {module_name!r} has no function {attribute!r}{nearest(attribute, names)}"
        )
    return factory


def _check_output(name: str, network: nn.Module, input_shape: tuple[int, int, int], classes: int) -> None:
    """One image through it: in evaluation mode, so that neither statistics nor random streams move."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = network.eval()(torch.zeros(1, *input_shape))
    except Exception as error:
        raise BadInput(
            f"network {name!r}: does not run on {_words(input_shape)} ({in_one_line(error)})"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, classes):
        given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise BadInput(f"network {name!r}: gives {given} for one image, must be (1, {classes})")


def _check_own(name: str, network: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """What else the suite needs of a network, and those that come with it have: a state of tensors that can be stored,
    and code that runs in float64, in which equality is proven."""
    for key, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.dtype is torch.complex128:
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise BadInput(f"network {name!r}: its state holds {key!r}, {kind}, which cannot be stored")
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(network).eval().double()(torch.zeros(1, *input_shape, dtype=torch.float64))
    except Exception as error:
        raise BadInput(
            f"network {name!r}: does not run in float64, in which its compact form is proven ({in_one_line(error)})"
        ) from error


def _words(input_shape: tuple[int, int, int]) -> str:
    channels, height, width = input_shape
    return f"images of {height}×{width} with {channels} channel{'s' if channels > 1 else ''}"
