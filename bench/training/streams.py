"""The random streams of an epoch: each is seeded by the epoch, and can be kept and brought back within it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.training.seeds import stream


class EpochStreams:
    """Seeds every stream that an epoch draws from.

    order: of the training images; a CPU stream, so that it is the same on every device. augmentation: of crops and
    flips, on the device. The network's own noise (dropout) comes from torch's global streams, the method's from its
    own.
    """

    def __init__(self, seed: int, epoch: int, method: torch.Generator, device: torch.device) -> None:
        """epoch: counted over the whole budget. method: the method's own stream, on `device`."""
        self.device, self.method = device, method
        torch.manual_seed(stream(seed, "network-noise", epoch))
        method.manual_seed(stream(seed, "method", epoch))
        self.order = torch.Generator().manual_seed(stream(seed, "order", epoch))
        self.augmentation = torch.Generator(device).manual_seed(stream(seed, "augment", epoch))

    def state(self) -> dict[str, Tensor]:
        """Where the streams stand; the order is drawn whole when an epoch begins, so it needs none."""
        state = {
            "network": torch.get_rng_state(),
            "method": self.method.get_state(),
            "augmentation": self.augmentation.get_state(),
        }
        if self.device.type == "cuda":
            state["network-cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken."""
        torch.set_rng_state(state["network"])
        self.method.set_state(state["method"])
        self.augmentation.set_state(state["augmentation"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["network-cuda"], self.device)
