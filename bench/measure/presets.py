"""The latency protocols that a suite may name, and the id of a measurement by one of them."""

from __future__ import annotations

import torch

from bench.measure.latency import FULL, QUICK
from bench.measure.machine import describe
from bench.records.ids import measure_id

PRESETS = {"quick": QUICK, "full": FULL}


def planned_id(point_id: str, device: torch.device, preset: str) -> str:
    """The id of the measurement of a point, on this machine's `device`."""
    return measure_id(point_id, describe(device).device, PRESETS[preset].model_dump(mode="json"))
