"""Evaluation mode that leaves a network as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[nn.Module]:
    """Put every module in evaluation mode, and each back into its own mode afterwards.

    `network.train(was_training)` would not do: it also unfreezes modules that were deliberately kept in
    evaluation mode.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield network
    finally:
        for module, training in modes:
            module.training = training
