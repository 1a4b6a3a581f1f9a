"""What tells that a data set has changed since a run was done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.execute.shortcut import data_stamp


def write(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("in_root", [True, False])
def test_a_folder_of_images_changes_with_any_of_its_files(in_root: bool, tmp_path: Path) -> None:
    folder = tmp_path / "images"

    def stamp() -> str:
        return data_stamp("images", tmp_path) if in_root else data_stamp(str(folder), None)

    write(folder / "train" / "a" / "1.png")
    os.utime(folder / "train" / "a" / "1.png", (1, 1))
    seen = [stamp()]
    assert stamp() == seen[0]
    write(folder / "train" / "a" / "2.png")
    seen.append(stamp())
    write(folder / "train" / "a" / "2.png", b"longer")
    seen.append(stamp())
    (folder / "train" / "a" / "2.png").rename(folder / "train" / "a" / "3.png")
    seen.append(stamp())
    os.utime(folder / "train" / "a" / "1.png", (2, 2))
    seen.append(stamp())
    (folder / "train" / "a" / "3.png").unlink()
    seen.append(stamp())
    assert len(set(seen)) == len(seen)


def test_a_file(tmp_path: Path) -> None:
    missing = data_stamp("set", tmp_path)
    write(tmp_path / "set.npz")
    there = data_stamp("set", tmp_path)
    write(tmp_path / "set.npz", b"longer")
    assert len({missing, there, data_stamp("set", tmp_path)}) == 3
    assert data_stamp("digits", None) == data_stamp("digits", None)


def test_a_file_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    missing = data_stamp("~/set.npz", None)
    write(tmp_path / "set.npz")
    assert data_stamp("~/set.npz", None) != missing
