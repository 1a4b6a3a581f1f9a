"""Clocks, memory and scores on a CUDA device. The one place where a test may skip."""

import pytest
import torch
from torch import nn

from bench.compaction.own_layers import Select
from bench.measure.accuracy import score
from bench.measure.clocks import timer
from bench.measure.cost import cost
from bench.measure.latency import LatencyProtocol, compare_latency, settings
from bench.measure.machine import describe
from bench.measure.memory import peak_bytes
from bench.measure.size import weight_bytes
from methods.base import Batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = torch.device("cuda")
TINY = LatencyProtocol(
    batches=(1, 64),
    blocks=3,
    block_seconds=5e-3,
    block_samples=3,
    warmup_calls=5,
    warmup_seconds=1e-3,
    warmup_cap=0.05,
    retries=0,
)


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


@pytest.mark.parametrize("changes", [{}, {"dtype": "bf16", "layout": "channels-last"}])
def test_three_clocks_per_batch(changes: dict[str, str]) -> None:
    dense, compact = network(32), network(16)
    benchmark = torch.backends.cudnn.benchmark
    protocol = LatencyProtocol.model_validate({**TINY.model_dump(), **changes})
    parts = compare_latency(dense, compact, (3, 32, 32), CUDA, protocol)
    assert [(part.batch, part.clock) for part in parts] == [
        (batch, clock) for batch in (1, 64) for clock in ("host", "device", "graph")
    ]
    assert all(0 < part.compact_p10 <= part.compact_median <= part.compact_p90 for part in parts)
    assert torch.backends.cudnn.benchmark == benchmark
    assert dense[0].weight.device.type == "cpu"


@pytest.mark.parametrize("clock", ["device", "graph"])
def test_short_calls_are_unrolled(clock: str) -> None:
    layer, x = nn.Linear(64, 64).to(CUDA), torch.randn(1, 64, device=CUDA)
    with torch.inference_mode():
        layer(x)
        assert timer(clock, lambda: layer(x), CUDA).unroll > 8


def test_a_graph_really_computes() -> None:
    layer, x = nn.Linear(8, 8).to(CUDA), torch.randn(4, 8, device=CUDA)
    out = torch.zeros(4, 8, device=CUDA)
    with torch.inference_mode():
        layer(x)
        taken = timer("graph", lambda: out.copy_(layer(x)), CUDA)
        out.zero_()
        taken.sample()
        torch.testing.assert_close(out, layer(x))


def test_scattered_channels_are_chosen_inside_a_graph() -> None:
    select, x = Select((2, -1, 0)).to(CUDA), torch.randn(4, 3, 8, 8, device=CUDA)
    out = torch.zeros(4, 3, 8, 8, device=CUDA)
    with torch.inference_mode():
        timer("graph", lambda: out.copy_(select(x)), CUDA).sample()
        torch.testing.assert_close(out, torch.stack([x[:, 2], torch.zeros_like(x[:, 0]), x[:, 0]], 1))


def test_the_allocator_s_peak_does_not_see_other_tensors() -> None:
    chain = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4))).to(CUDA)
    example = torch.randn(256, 1024, device=CUDA)
    live = weight_bytes(chain) + example.nbytes + 2 * 256 * 1024 * 4
    alone = peak_bytes(chain, example)
    other = torch.empty(1 << 28, dtype=torch.uint8, device=CUDA)
    assert peak_bytes(chain, example) == alone
    assert alone >= live  # workspaces come on top
    assert other.nbytes > alone


def test_scores_and_cost_agree_with_the_cpu() -> None:
    model = network(16).eval()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 3, 16, 16, generator=generator)
    targets = torch.randint(10, (50,), generator=generator)
    on_cpu, macs = score(model, [Batch(inputs, targets)]), cost(model, inputs[:1]).macs
    model.to(CUDA)
    on_gpu = score(model, [Batch(inputs.to(CUDA), targets.to(CUDA))])
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=1e-2)  # convolutions may run in TF32
    assert cost(model, inputs[:1].to(CUDA)).macs == macs


def test_the_card_stands_in_the_record() -> None:
    assert describe(CUDA).device == torch.cuda.get_device_name(CUDA)
    assert settings(CUDA)["cudnn_enabled"] is True
