"""The whole comparison on the CPU. Which network is quicker is nobody's business here."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.utils import parametrizations, prune

from bench.measure import latency
from bench.measure.blocks import PairedSamples
from bench.measure.latency import LatencyProtocol, compare_latency, settings
from bench.measure.locks import locked

CPU = torch.device("cpu")
TINY = LatencyProtocol(
    batches=(1, 3),
    blocks=3,
    block_seconds=1e-4,
    block_samples=2,
    warmup_calls=2,
    warmup_seconds=1e-4,
    warmup_cap=1e-3,
    retries=0,
)


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 10)
    )


def test_one_part_per_batch_each_with_its_spread() -> None:
    parts = compare_latency(network(8), network(4), (1, 8, 8), CPU, TINY)
    assert [(part.clock, part.batch) for part in parts] == [("host", 1), ("host", 3)]
    for part in parts:
        assert (part.engine, part.dtype, part.layout, part.blocks) == ("eager", "fp32", "nchw", 3)
        assert part.calls >= 6
        assert 0 < part.compact_p10 <= part.compact_median <= part.compact_p90
        assert 0 < part.dense_p10 <= part.dense_median <= part.dense_p90
        assert part.speedup_low <= part.speedup_high
        assert part.speedup == pytest.approx(part.dense_median / part.compact_median)


@pytest.mark.parametrize("changes", [{"dtype": "bf16"}, {"layout": "channels-last"}])
def test_copies_run_as_asked_and_the_networks_stay(changes: dict[str, str]) -> None:
    seen: list[tuple[torch.dtype, bool, bool, bool]] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
            seen.append((x.dtype, last, self.training, torch.is_inference_mode_enabled()))
            return x

    spied = nn.Sequential(nn.Conv2d(2, 4, 3), Spy()).train()
    random_state = torch.get_rng_state()
    protocol = LatencyProtocol.model_validate({**TINY.model_dump(), **changes})
    compare_latency(spied, spied, (2, 5, 5), CPU, protocol)
    dtype = torch.bfloat16 if protocol.dtype == "bf16" else torch.float32
    assert set(seen) == {(dtype, protocol.layout == "channels-last", False, True)}
    assert spied.training
    assert spied[0].weight.dtype == torch.float32
    assert spied[0].weight.is_contiguous()
    assert torch.equal(torch.get_rng_state(), random_state)


def test_networks_on_images_take_them_in_turn() -> None:
    seen: list[float] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(float(x[0, 0, 0, 0]))
            return x

    images = [torch.full((2, 1, 8, 8), float(value)) for value in range(3)]
    spied = nn.Sequential(Spy(), network())
    part = latency.compare_on_images(network(8), spied, images, "gather", CPU, TINY)
    assert (part.engine, part.clock, part.batch) == ("gather", "host", 2)
    assert part.speedup == pytest.approx(part.dense_median / part.compact_median)
    assert seen == [index % 3 for index in range(len(seen))]
    assert len(seen) > part.calls


def with_hook(module: nn.Sequential) -> None:
    module[0].register_forward_hook(lambda *_: None)


def with_hook_at_the_root(module: nn.Sequential) -> None:
    module.register_forward_pre_hook(lambda *_: None)


def with_mask(module: nn.Sequential) -> None:
    prune.l1_unstructured(module[0], "weight", amount=0.5)


def with_parametrisation(module: nn.Sequential) -> None:
    parametrizations.weight_norm(module[4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_hook, "module '0' has a forward hook"),
        (with_hook_at_the_root, "the network has a forward hook"),
        (with_mask, "module '0' has a forward hook"),
        (with_parametrisation, "module '4' has a parametrisation"),
    ],
)
@pytest.mark.parametrize("position", ["dense", "compact"])
def test_networks_that_are_not_plain_are_refused(
    change: Callable[[nn.Sequential], None], message: str, position: str
) -> None:
    networks = {"dense": network(), "compact": network()}
    change(networks[position])
    with pytest.raises(ValueError, match=message):
        compare_latency(**networks, input_shape=(1, 8, 8), device=CPU, protocol=TINY)


def test_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="not on meta"):
        compare_latency(network(), network(), (1, 8, 8), torch.device("meta"), TINY)


STEADY = PairedSamples([np.full(4, 2.0)] * 3, [np.full(4, 1.0)] * 3)
ROUGH = PairedSamples([np.full(4, 2.0)] * 3, [np.full(4, 1.0), np.full(4, 1.5), np.full(4, 1.0)])


@pytest.mark.parametrize(
    ("rounds", "retries", "unstable", "used"),
    [
        ([STEADY], 2, False, 1),
        ([ROUGH, STEADY], 2, False, 2),
        ([ROUGH, ROUGH, ROUGH], 2, True, 3),
        ([ROUGH], 0, True, 1),
    ],
)
def test_blocks_that_spread_are_measured_again_and_then_marked(
    monkeypatch: pytest.MonkeyPatch, rounds: list[PairedSamples], retries: int, unstable: bool, used: int
) -> None:
    remaining = list(rounds)
    monkeypatch.setattr(latency, "interleave", lambda *_: remaining.pop(0))
    monkeypatch.setattr(latency, "warm_up", lambda *_: True)
    protocol = LatencyProtocol.model_validate({**TINY.model_dump(), "batches": (1,), "retries": retries})
    (part,) = compare_latency(network(), network(), (1, 8, 8), CPU, protocol)
    assert part.unstable == unstable
    assert len(rounds) - len(remaining) == used
    assert part.speedup == 2.0


def test_a_warm_up_that_did_not_settle_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "interleave", lambda *_: STEADY)
    monkeypatch.setattr(latency, "warm_up", lambda *_: False)
    assert all(part.unstable for part in compare_latency(network(), network(), (1, 8, 8), CPU, TINY))


def test_the_protocol_is_checked_and_survives_json() -> None:
    assert LatencyProtocol.model_validate_json(TINY.model_dump_json()) == TINY
    for bad in ({"batches": ()}, {"batches": (0,)}, {"blocks": 0}, {"dtype": "int8"}, {"block": 8}):
        with pytest.raises(ValidationError):
            LatencyProtocol.model_validate(bad)


def test_clocks_depend_on_the_device() -> None:
    assert TINY.clocks(CPU) == ("host",)
    assert TINY.clocks(torch.device("cuda")) == ("host", "device", "graph")


def test_settings_name_what_the_caller_chose() -> None:
    found = settings(CPU)
    assert found["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(found)) == found
    assert "tf32_matmul" not in found
    assert {"tf32_matmul", "tf32_convolution", "cudnn_benchmark"} <= settings(torch.device("cuda")).keys()


def test_settings_survive_the_newer_precision_flags() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, tf32 in (("tf32", True), ("ieee", False)):
            torch.backends.cuda.matmul.fp32_precision = precision
            found = settings(torch.device("cuda"))
            assert (found["float32_matmul"], found["tf32_matmul"]) == (precision, tf32)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    path = tmp_path / "card.lock"
    with locked(path), path.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
