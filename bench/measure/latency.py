"""Latency of a compact network beside its dense original, interleaved in one process."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.measure.blocks import PairedSamples, interleave, warm_up
from bench.measure.clocks import Call, autotuned, host_sampler, timer
from bench.measure.locks import alone_on
from bench.measure.protocol import DTYPES, FULL, QUICK, Clock, LatencyProtocol
from bench.measure.spread import block_spread, percentiles, speedup
from bench.records.schema import LatencyPart

__all__ = [
    "FULL",
    "QUICK",
    "LatencyProtocol",
    "compare_latency",
    "compare_on_images",
    "refuse_unless_plain",
    "settings",
]


def compare_latency(
    dense: nn.Module,
    compact: nn.Module,
    input_shape: tuple[int, ...],
    device: torch.device,
    protocol: LatencyProtocol = QUICK,
) -> list[LatencyPart]:
    """One part per batch size and clock. Copies of the networks run, in evaluation and inference mode; the
    networks stay as and where they are. The thread count is the caller's.

    input_shape: of one image, (C, H, W). The input is random normal (zeros would draw less power and clock
    higher) and lies on the device. Raises ValueError for a network that is not plain, and for a device that
    is neither cpu nor cuda.
    """
    dense, compact = (_prepared(network, device, protocol) for network in (dense, compact))
    parts: list[LatencyPart] = []
    with _timing_on(device):
        for batch in protocol.batches:
            inputs = _placed(_noise(batch, input_shape), device, protocol)
            calls = partial(dense, inputs), partial(compact, inputs)
            parts += _compare(*calls, batch, device, protocol, protocol.engine, protocol.clocks(device))
    return parts


def compare_on_images(
    dense: nn.Module,
    dynamic: nn.Module,
    images: Sequence[Tensor],
    engine: str,
    device: torch.device,
    protocol: LatencyProtocol = QUICK,
) -> LatencyPart:
    """Beside its dense original a network whose work depends on the image, here in the place of the compact one.

    images: batches of one size, (N, C, H, W) each; both networks take them in turn. On the host's clock alone: what
    runs is known image by image, so that no graph can hold it. Raises as `compare_latency`.
    """
    dense, dynamic = (_prepared(network, device, protocol) for network in (dense, dynamic))
    with _timing_on(device):
        placed = [_placed(batch, device, protocol) for batch in images]
        calls = _in_turn(dense, placed), _in_turn(dynamic, placed)
        for call in calls:
            for _ in placed:  # each may have shapes of its own, for which libraries choose an algorithm once
                call()
        (part,) = _compare(*calls, len(images[0]), device, protocol, engine, ("host",))
    return part


def _in_turn(network: nn.Module, batches: Sequence[Tensor]) -> Call:
    """A call of `network` on the next batch, round and round."""
    turns = cycle(batches)
    return lambda: network(next(turns))


def refuse_unless_plain(network: nn.Module) -> None:
    """Raise ValueError if `network` has hooks or parametrisations: they work on every call, so its time would
    say nothing about the network that is left once they are gone."""
    for name, module in network.named_modules():
        where = f"module {name!r}" if name else "the network"
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"latency is measured on plain networks only: {where} has a forward hook")
        if parametrize.is_parametrized(module):
            raise ValueError(f"latency is measured on plain networks only: {where} has a parametrisation")


def settings(device: torch.device) -> dict[str, Any]:
    """Flags and state that move latencies, as they are now: threads and load of the host, how float32
    products are computed on `device` (torch's word, `none` means in full), and for CUDA the choices of cuDNN
    (`cudnn_benchmark` as the caller left it; it is on while timing)."""
    # The older getters (allow_tf32, get_float32_matmul_precision) raise once the newer flags have been used.
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "float32_matmul": torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        "onednn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "governor": _system_file("cpu0/cpufreq/scaling_governor"),
        "boost": _system_file("cpufreq/boost"),
        "hyper_threading": _system_file("smt/active"),
    }
    if device.type == "cuda":
        found |= {
            "float32_matmul": torch.backends.cuda.matmul.fp32_precision,
            "tf32_matmul": torch.backends.cuda.matmul.fp32_precision == "tf32",
            "tf32_convolution": torch.backends.cudnn.conv.fp32_precision == "tf32",  # type: ignore[attr-defined]
            "cudnn_enabled": torch.backends.cudnn.enabled,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
        }
    return found


def _compare(
    dense: Call,
    compact: Call,
    batch: int,
    device: torch.device,
    protocol: LatencyProtocol,
    engine: str,
    clocks: Sequence[Clock],
) -> list[LatencyPart]:
    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    settled = [warm_up(host_sampler(call, 1, synchronise), protocol) for call in (dense, compact)]
    return [
        _measure(clock, dense, compact, batch, device, protocol, engine, all(settled)) for clock in clocks
    ]


def _measure(
    clock: Clock,
    dense: Call,
    compact: Call,
    batch: int,
    device: torch.device,
    protocol: LatencyProtocol,
    engine: str,
    settled: bool,
) -> LatencyPart:
    dense_timer, compact_timer = timer(clock, dense, device), timer(clock, compact, device)
    for _ in range(protocol.retries + 1):
        samples = interleave(dense_timer.sample, compact_timer.sample, protocol)
        if steady := _steady(samples, protocol):
            break
    dense_times, compact_times = percentiles(samples.dense), percentiles(samples.compact)
    ratio = speedup(samples)
    return LatencyPart(
        clock=clock,
        batch=batch,
        engine=engine,
        dtype=protocol.dtype,
        layout=protocol.layout,
        calls=min(
            dense_timer.unroll * sum(map(len, samples.dense)),
            compact_timer.unroll * sum(map(len, samples.compact)),
        ),
        blocks=protocol.blocks,
        compact_median=compact_times[0],
        compact_p10=compact_times[1],
        compact_p90=compact_times[2],
        dense_median=dense_times[0],
        dense_p10=dense_times[1],
        dense_p90=dense_times[2],
        speedup=ratio.value,
        speedup_low=ratio.low,
        speedup_high=ratio.high,
        unstable=not (settled and steady),
    )


def _steady(samples: PairedSamples, protocol: LatencyProtocol) -> bool:
    return max(block_spread(samples.dense), block_spread(samples.compact)) <= protocol.spread_limit


@contextmanager
def _timing_on(device: torch.device) -> Iterator[None]:
    """The state of the process while calls are timed."""
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with current, alone_on(device), autotuned(device), torch.inference_mode():
        yield


def _prepared(network: nn.Module, device: torch.device, protocol: LatencyProtocol) -> nn.Module:
    """A copy to be timed."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"latency is measured on cpu and cuda, not on {device.type}")
    refuse_unless_plain(network)
    network = copy.deepcopy(network).to(device=device, dtype=DTYPES[protocol.dtype])
    if protocol.layout == "channels-last":
        network = network.to(memory_format=torch.channels_last)
    return network.eval()


def _noise(batch: int, shape: tuple[int, ...]) -> Tensor:
    """From a generator of its own: measuring must not move the caller's random stream."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


def _placed(inputs: Tensor, device: torch.device, protocol: LatencyProtocol) -> Tensor:
    inputs = inputs.to(device, DTYPES[protocol.dtype])
    if protocol.layout == "channels-last" and inputs.dim() == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def _system_file(path: str) -> str | None:
    try:
        return (Path("/sys/devices/system/cpu") / path).read_text().strip()
    except OSError:
        return None
