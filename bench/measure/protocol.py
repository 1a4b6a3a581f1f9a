"""How latency is measured: the settings that make two numbers comparable."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Clock = Literal["host", "device", "graph"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class LatencyProtocol(BaseModel):
    """Stands whole in the record. Both networks run as they are (normalisation not folded, in neither), with
    warm caches.

    blocks: pairs of a dense and a compact block, each of at least block_seconds and block_samples. Warm-up of
    a network ends when it has had warmup_calls and warmup_seconds and the medians of its last two windows
    differ by at most warmup_tolerance, or at warmup_cap seconds. spread_limit: if the block medians of a
    network range over more than this share of their median, the blocks are measured again, at most `retries`
    times; a result that stays so, or whose warm-up did not settle, is marked `unstable`. fp32 follows the
    caller's TF32 flags (see `latency.settings`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batches: tuple[PositiveInt, ...] = Field(default=(1, 256), min_length=1)
    dtype: Literal["fp32", "bf16"] = "fp32"
    layout: Literal["nchw", "channels-last"] = "nchw"
    engine: Literal["eager"] = "eager"
    blocks: PositiveInt = 8
    block_seconds: PositiveFloat = 0.25
    block_samples: PositiveInt = 25
    warmup_calls: PositiveInt = 50
    warmup_seconds: PositiveFloat = 1.0
    warmup_tolerance: PositiveFloat = 0.01
    warmup_cap: PositiveFloat = 10.0
    spread_limit: PositiveFloat = 0.03
    retries: int = Field(default=1, ge=0)

    def clocks(self, device: torch.device) -> tuple[Clock, ...]:
        """host: wall time of one synchronised call, what a user waits. device: events around back-to-back
        eager calls. graph: events around a CUDA graph of unrolled calls, kernel time without the gaps between
        launches."""
        return ("host", "device", "graph") if device.type == "cuda" else ("host",)


FULL = LatencyProtocol()
"""For numbers that are reported: per network, batch and clock at least 2 s and 200 samples."""

QUICK = LatencyProtocol(
    block_seconds=0.01,
    block_samples=1,
    warmup_calls=10,
    warmup_seconds=0.01,
    warmup_tolerance=0.05,
    warmup_cap=0.04,
    spread_limit=0.1,
    retries=0,
)
"""For every operating point of a suite: about a quarter of a second per pair of networks, batch and clock."""
