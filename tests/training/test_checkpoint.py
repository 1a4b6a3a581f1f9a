"""State on disk comes back as it was, and damage is no crash."""

import errno
import os
from pathlib import Path

import pytest
import torch

from bench.training.checkpoint import clone_state, read_state, write_state


def test_nested_state_comes_back(tmp_path: Path) -> None:
    state = {
        "network": {"w": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)},
        "optimizers": [
            {"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
        ],
        "position": {"phase": 1, "name": "tensor:looks like a marker", "none": None, "yes": True},
        "empty": {},
    }
    write_state(tmp_path / "deep" / "a.safetensors", state)
    back = read_state(tmp_path / "deep" / "a.safetensors")
    assert back is not None
    assert torch.equal(back["network"]["w"], state["network"]["w"])
    assert back["network"]["count"].dtype == torch.int64
    assert back["optimizers"][0]["state"][0]["step"] == 2.0
    assert back["optimizers"][0]["param_groups"] == [{"lr": 0.1, "betas": [0.9, 0.99]}]
    assert back["position"] == state["position"]
    assert back["empty"] == {}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.safetensors"]


def test_tensors_that_share_memory_are_kept_apart(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    write_state(tmp_path / "a", {"one": base, "two": base[1:]})
    back = read_state(tmp_path / "a")
    assert back is not None
    assert back["two"].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    assert read_state(path) is None
    path.write_bytes(content)
    assert read_state(path) is None


def test_a_file_cut_short_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_state(path, {"w": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-10])
    assert read_state(path) is None


@pytest.mark.parametrize("damage", [(b"tensor:/w", b"tensor:/v"), (b"i:0", b"i:x")])
def test_a_damaged_description_counts_as_none(tmp_path: Path, damage: tuple[bytes, bytes]) -> None:
    """Else it would fail whoever takes it up, at every try."""
    path = tmp_path / "a.safetensors"
    write_state(path, {"w": torch.zeros(2), "at": {0: 1}})
    assert read_state(path) is not None
    path.write_bytes(path.read_bytes().replace(*damage))
    assert read_state(path) is None


def test_what_cannot_be_kept_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="/method/thing"):
        write_state(tmp_path / "a", {"method": {"thing": object()}})


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_state(tmp_path / "a", {"step": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_state(tmp_path / "a", {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert read_state(tmp_path / "a") == {"step": 1}


def test_a_clone_shares_nothing() -> None:
    state = {"a": [torch.zeros(2)]}
    copy = clone_state(state)
    state["a"][0].add_(1)
    assert copy["a"][0].tolist() == [0.0, 0.0]
