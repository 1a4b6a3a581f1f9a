"""bf16 in training: the passes of the network alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def bf16_in_training(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, `network` in training mode runs under autocast to bf16 and gives float32 outputs.

    By hooks around the network rather than around the step: penalties, estimators and the loss, which are the method's
    and small, stay float32, and so does all evaluation.
    """
    entered: list[torch.autocast] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        if module.training:
            entered.append(torch.autocast(device.type, torch.bfloat16))
            entered[-1].__enter__()

    def leave(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        """Also where the pass has failed; the output is then None."""
        if not entered:
            return None
        entered.pop().__exit__(None, None, None)
        return output.float() if isinstance(output, Tensor) else None

    handles = [
        network.register_forward_pre_hook(enter),
        network.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
