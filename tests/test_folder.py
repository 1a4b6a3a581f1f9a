from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from bench.errors import BadInput
from bench.folder import collect, in_one_line


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package of its own name for every test, so that no module of another one is
    remembered."""
    folder = tmp_path / f"parts_{tmp_path.name}".replace("-", "_")
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text("TABLE = {'a': 1, 'b': 2}\n")
    (folder / "two.py").write_text("TABLE = {'c': 3}\n")
    (folder / "_helper.py").write_text("raise RuntimeError('helpers are not parts')\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return folder


def refusal(package: Path) -> str:
    with pytest.raises(BadInput) as caught:
        collect(package.name, "TABLE")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_union_of_all_files(package: Path) -> None:
    assert collect(package.name, "TABLE") == {"a": 1, "b": 2, "c": 3}


def test_a_file_that_does_not_import(package: Path) -> None:
    (package / "three.py").write_text("import nothing_of_this_name\n")
    assert refusal(package).startswith(f"{package.name}/three.py: does not import (ModuleNotFoundError: ")


def test_a_file_without_the_table(package: Path) -> None:
    (package / "three.py").write_text("TABEL = {}\n")
    assert refusal(package) == f"{package.name}/three.py: has no dict 'TABLE'"


def test_a_name_that_is_taken(package: Path) -> None:
    (package / "three.py").write_text("TABLE = {'b': 4}\n")  # read after one.py, before two.py
    assert refusal(package) == f"{package.name}/three.py: the name 'b' in TABLE is taken by another file"


def test_an_error_in_one_line() -> None:
    assert in_one_line(ValueError("one\n  two\n")) == "ValueError: one two"
    assert in_one_line(KeyError()) == "KeyError"
    assert len(in_one_line(ValueError("long " * 100))) < 220
