"""The device that the command line names, and how a network lies in its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bench.errors import BadInput
from bench.records.schema import MemoryFormat

_FORMATS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


def resolve(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises BadInput for a device that this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"--device {name}: no such device (cpu, cuda, cuda:1 …)") from None
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def use(name: str) -> torch.device:
    """A device that was resolved, from here on the current one of this process: streams, graphs and waits that name no
    device are of the current one."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def place(
    network: nn.Module, device: torch.device, memory_format: MemoryFormat = "channels-last"
) -> nn.Module:
    """`network` itself, moved to `device`, the weights of its convolutions in this format: channels-last, training and
    scoring the suite's convolutional networks measured 1.3 to 1.9 times faster on a CPU. Values do not change."""
    return network.to(device).to(memory_format=_FORMATS[memory_format])


def memory_format_of(network: nn.Module) -> MemoryFormat:
    """In which a network was placed; channels-last where its weights are the same in both."""
    weights = [parameter for parameter in network.parameters() if parameter.dim() == 4]
    last = all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    return "channels-last" if last else "contiguous"


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, float32 is float32 on every device. torch lets a GPU round the inputs of convolutions to TF32, by which a
    compact network differs from the masked one by more than a certificate allows. Training is as exact, for one record
    to mean one thing; who wants speed asks for bf16 by name."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    flags: tuple[Any, ...] = (convolutions, torch.backends.cuda.matmul)
    before = [flag.fp32_precision for flag in flags]
    try:
        for flag in flags:
            flag.fp32_precision = "ieee"
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.fp32_precision = value
