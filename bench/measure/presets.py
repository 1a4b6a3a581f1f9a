"""The latency protocols that a suite may name, and the id of a measurement by one of them."""

from __future__ import annotations

import torch

from bench.estimate import EVALUATION_RATE
from bench.measure.latency import FULL, QUICK
from bench.measure.machine import describe
from bench.records.ids import measure_id

PRESETS = {"quick": QUICK, "full": FULL}


def planned_id(point_id: str, device: torch.device, preset: str) -> str:
    """The id of the measurement of a point, on this machine's `device`."""
    return measure_id(point_id, describe(device).device, PRESETS[preset].model_dump(mode="json"))


def estimated_seconds(preset: str, macs: int, device: torch.device) -> float:
    """About how long a measurement takes, from what its protocol asks for: two networks, in every batch size and
    clock. macs: of the dense network, for one image."""
    protocol = PRESETS[preset]
    total = 0.0
    for batch in protocol.batches:
        call = batch * macs / EVALUATION_RATE
        block = max(protocol.block_seconds, protocol.block_samples * call)
        warm_up = max(protocol.warmup_seconds, min(protocol.warmup_cap, protocol.warmup_calls * call))
        total += 2 * len(protocol.clocks(device)) * (protocol.blocks * block + warm_up)
    return total
