"""Small data sets, made by the tests; nothing here reads real data or the network."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.data import registry

Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _offline_and_forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test depends on the user's BENCH_DATA, on what another test loaded, or on a server."""
    real = urllib.request.urlopen

    def only_here(request: urllib.request.Request) -> object:
        if request.host.startswith("127.0.0.1:"):
            return real(request)
        raise urllib.request.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", only_here)
    monkeypatch.delenv(registry.ROOT_VARIABLE, raising=False)
    registry._prepared.cache_clear()
    yield
    registry._prepared.cache_clear()


@pytest.fixture
def arrays() -> Callable[..., Arrays]:
    """`arrays(shape, train, test, classes)`: random pixels, every class about equally often."""

    def make(shape: tuple[int, ...] = (6, 5), train: int = 40, test: int = 12, classes: int = 4) -> Arrays:
        stream = np.random.default_rng(0)
        made = {}
        for part, count in (("train", train), ("test", test)):
            made[f"x_{part}"] = stream.integers(0, 256, (count, *shape), dtype=np.uint8)
            made[f"y_{part}"] = np.arange(count) % classes
        return made

    return make


@pytest.fixture
def npz(tmp_path: Path, arrays: Callable[..., Arrays]) -> Callable[..., Path]:
    """`npz(key=array, …)`: a good file with these keys replaced, or taken away where they are None."""

    def write(name: str = "my.npz", **changes: np.ndarray | None) -> Path:
        content = {key: value for key, value in {**arrays(), **changes}.items() if value is not None}
        np.savez(tmp_path / name, **content)
        return tmp_path / name

    return write
