"""Latency of a network whose input gates close units for single images: for one image by gathering what is open, for
a batch by multiplying."""

from __future__ import annotations

import torch
from torch import nn

from bench.compaction.archive import Dynamic, Loaded
from bench.compaction.gather import gather_path
from bench.compaction.verify import FLOAT32_BOUND, difference
from bench.errors import CellFailed
from bench.measure.latency import LatencyProtocol, compare_on_images
from bench.records.schema import LatencyPart

MASKED_BATCH = 128
"""As in the paper's code."""


def dynamic_latency(
    archive: Loaded, dynamic: Dynamic, dense: nn.Module, device: torch.device, protocol: LatencyProtocol
) -> tuple[list[LatencyPart], list[str]]:
    """The engines `gather`, batch 1, and `masked`, on the images of the archive; and the sites that are gathered.

    The networks are on the CPU, where they are compared too; `device` is where they are timed. Raises CellFailed where
    the gather path does not compute what the gated network does.
    """
    images = dynamic.images
    path, gated = gather_path(archive.network, dynamic.gates, images[:1]), archive.gated()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    apart = difference(gated, path.network, torch.cat([images, noise]).split(1))
    if not apart <= FLOAT32_BOUND:
        raise CellFailed(
            "unequal",
            f"gathered, the network differs by {apart:.2g} of the output scale (bound {FLOAT32_BOUND:g})",
        )
    batch = images.repeat(-(-MASKED_BATCH // len(images)), 1, 1, 1)[:MASKED_BATCH]
    parts = [
        compare_on_images(dense, path.network, images.split(1), "gather", device, protocol),
        compare_on_images(dense, gated, [batch], "masked", device, protocol),
    ]
    return parts, list(path.sites)
