"""Warm-up, and blocks of samples that alternate between two networks, so that a drift of the machine hits
both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.measure.clocks import Sampler
from bench.measure.protocol import LatencyProtocol

Samples = list[NDArray[np.float64]]
"""Milliseconds per call, one array per block."""

Now = Callable[[], float]


@dataclass(frozen=True)
class PairedSamples:
    """Block i of one network ran next to block i of the other."""

    dense: Samples
    compact: Samples


def warm_up(sample: Sampler, protocol: LatencyProtocol, now: Now = time.perf_counter) -> bool:
    """Call until the times settle (see LatencyProtocol). False if they still moved when the cap was reached;
    a network too slow to tell by then passes, since the spread of its blocks will tell.

    The first call is not on the clock: it loads libraries and tries algorithms."""
    window = max(1, protocol.warmup_calls // 2)
    taken: list[float] = []
    sample()
    start = now()
    while True:
        taken.append(sample())
        elapsed = now() - start
        long_enough = len(taken) >= protocol.warmup_calls and elapsed >= protocol.warmup_seconds
        # one comparison per window: a median per call would cost more than a small network
        if long_enough and len(taken) % window == 0 and len(taken) >= 2 * window:
            earlier = statistics.median(taken[-2 * window : -window])
            later = statistics.median(taken[-window:])
            if abs(later - earlier) <= protocol.warmup_tolerance * earlier:
                return True
        if elapsed >= protocol.warmup_cap:
            return len(taken) < 2 * window


def interleave(
    dense: Sampler, compact: Sampler, protocol: LatencyProtocol, now: Now = time.perf_counter
) -> PairedSamples:
    """Measure `protocol.blocks` pairs of blocks in the order dense compact, compact dense, dense compact …"""
    samples = PairedSamples([], [])
    with _no_garbage_collection():
        for pair in range(protocol.blocks):
            turns = ((dense, samples.dense), (compact, samples.compact))
            for sample, blocks in turns if pair % 2 == 0 else reversed(turns):
                blocks.append(_block(sample, protocol, now))
    return samples


def _block(sample: Sampler, protocol: LatencyProtocol, now: Now) -> NDArray[np.float64]:
    taken: list[float] = []
    end = now() + protocol.block_seconds
    while True:
        taken.append(sample())
        if len(taken) >= protocol.block_samples and now() >= end:
            return np.array(taken)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
