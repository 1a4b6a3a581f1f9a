"""The scheduler with a clock that only moves when a fake network is called."""

import gc

import pytest

from bench.measure.blocks import interleave, warm_up
from bench.measure.clocks import LARGEST_UNROLL, host_sampler, unrolled
from bench.measure.protocol import FULL, QUICK, LatencyProtocol


class World:
    """Time in seconds, and who was called."""

    def __init__(self) -> None:
        self.time = 0.0
        self.calls: list[str] = []

    def now(self) -> float:
        return self.time

    def sampler(self, name: str, *milliseconds: float):  # the last value is repeated
        remaining = list(milliseconds)

        def sample() -> float:
            length = remaining.pop(0) if len(remaining) > 1 else remaining[0]
            self.time += length / 1000
            self.calls.append(name)
            return length

        return sample


def protocol(**changes: object) -> LatencyProtocol:
    return LatencyProtocol.model_validate({**QUICK.model_dump(), **changes})


def test_blocks_alternate_in_mirrored_pairs() -> None:
    world = World()
    interleave(
        world.sampler("d", 1.0),
        world.sampler("c", 1.0),
        protocol(blocks=5, block_seconds=1e-9, block_samples=1),
        world.now,
    )
    assert "".join(world.calls) == "dccddccddc"


def test_samples_are_filed_under_their_network_and_block() -> None:
    world = World()
    samples = interleave(
        world.sampler("d", 1.0, 2.0, 3.0, 4.0),
        world.sampler("c", 10.0, 20.0, 30.0, 40.0),
        protocol(blocks=2, block_seconds=1e-9, block_samples=2),
        world.now,
    )
    assert [block.tolist() for block in samples.dense] == [[1, 2], [3, 4]]
    assert [block.tolist() for block in samples.compact] == [[10, 20], [30, 40]]


def test_a_block_lasts_its_time_and_has_its_samples() -> None:
    world = World()
    fast_and_slow = protocol(blocks=2, block_seconds=0.1, block_samples=3)
    samples = interleave(world.sampler("d", 2.0), world.sampler("c", 500.0), fast_and_slow, world.now)
    assert all(50 <= len(block) <= 51 for block in samples.dense)  # 0.1 s of 2 ms
    assert [len(block) for block in samples.compact] == [3, 3]  # 0.1 s would be one


def test_full_protocol_gives_two_seconds_and_two_hundred_samples() -> None:
    for length in (0.5, 100.0):
        world = World()
        samples = interleave(world.sampler("d", length), world.sampler("c", length), FULL, world.now)
        for blocks in (samples.dense, samples.compact):
            count = sum(map(len, blocks))
            assert len(blocks) >= 8
            assert count >= 200
            assert count * length >= 2000


def test_quick_protocol_takes_a_quarter_of_a_second() -> None:
    world = World()
    networks = world.sampler("d", 0.5), world.sampler("c", 0.25)
    for sample in networks:
        warm_up(sample, QUICK, world.now)
    interleave(*networks, QUICK, world.now)
    assert world.time == pytest.approx(0.2, abs=0.06)


def test_garbage_collection_waits_and_comes_back() -> None:
    states: list[bool] = []

    def sample() -> float:
        states.append(gc.isenabled())
        return 1.0

    def broken() -> float:
        raise RuntimeError("out of memory")

    tiny = protocol(blocks=1, block_seconds=1e-9)
    interleave(sample, sample, tiny)
    assert not any(states)
    assert gc.isenabled()
    with pytest.raises(RuntimeError):
        interleave(sample, broken, tiny)
    assert gc.isenabled()


WARM = {"warmup_calls": 10, "warmup_seconds": 0.02, "warmup_tolerance": 0.05, "warmup_cap": 1.0}


def test_warm_up_needs_calls_and_seconds() -> None:
    world = World()
    assert warm_up(world.sampler("n", 10.0), protocol(**WARM), world.now)
    assert len(world.calls) == 1 + 10  # 20 ms were over after two
    world = World()
    assert warm_up(world.sampler("n", 0.1), protocol(**WARM), world.now)
    assert 200 <= len(world.calls) - 1 < 210  # ten calls took 1 ms


def test_warm_up_goes_on_until_times_settle() -> None:
    falling = [100.0, *(20.0 - i for i in range(15)), 5.0]
    world = World()
    assert warm_up(world.sampler("n", *falling), protocol(**WARM), world.now)
    assert len(world.calls) >= len(falling) + 5


def test_warm_up_that_never_settles_says_so_at_the_cap() -> None:
    world = World()
    growing = [1.1**i for i in range(100)]
    assert not warm_up(world.sampler("n", *growing), protocol(**WARM), world.now)
    assert 1.0 <= world.time < 1.3


def test_a_slow_network_is_called_little_and_not_blamed() -> None:
    world = World()
    assert warm_up(world.sampler("n", 700.0), protocol(**WARM), world.now)
    assert len(world.calls) == 3


def test_the_unroll_reaches_the_floor() -> None:
    def make(unroll: int):
        return lambda: (5e-3 + 0.01 * unroll) / unroll  # 10 µs a call, 5 µs to launch the lot

    timer = unrolled(make, 1.0)
    assert timer.sample() * timer.unroll >= 1.0
    assert timer.unroll <= 200  # and does not overshoot by much


def test_a_slow_call_is_not_unrolled_and_an_instant_one_has_an_end() -> None:
    assert unrolled(lambda unroll: lambda: 3.0, 1.0).unroll == 1
    assert unrolled(lambda unroll: lambda: 0.0, 1.0).unroll == LARGEST_UNROLL


def test_host_clock_waits_for_the_device_before_it_is_read() -> None:
    events: list[str] = []
    times = iter([1_000_000, 7_000_000])

    def now() -> int:
        events.append("clock")
        return next(times)

    sample = host_sampler(lambda: events.append("call"), 3, lambda: events.append("wait"), now)
    assert sample() == pytest.approx(2.0)  # 6 ms over 3 calls
    assert events == ["clock", "call", "call", "call", "wait", "clock"]
