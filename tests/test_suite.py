"""A suite file is checked key by key, and every complaint is one line that names the file and the key."""

from pathlib import Path

import pytest

from bench import suite
from bench.errors import BadInput

GOOD = """
title = "t"
seeds = [0]
[[workloads]]
dataset = "digits"
network = "mlp-300-100"
recipe = { epochs = 2 }
[[methods]]
name = "dense"
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_good_one_is_named_after_its_file(tmp_path: Path) -> None:
    loaded = suite.load(write(tmp_path, GOOD))
    assert (loaded.name, loaded.seeds, loaded.methods[0].shown) == ("mine", (0,), "dense")


@pytest.mark.parametrize("name", suite.shipped())
def test_every_shipped_suite_is_valid(name: str) -> None:
    assert suite.load(name).name == name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("epochs = 2", "epoch = 2"), ["workloads.0.recipe.epoch", "did you mean 'epochs'"]),
        (("epochs = 2", "epochs = 0"), ["workloads.0.recipe.epochs", "greater than 0", "got 0"]),
        (("epochs = 2", "epochs = 2, optimizer = 'adm'"), ["workloads.0.recipe.optimizer", "'adam'"]),
        (('title = "t"', 'titel = "t"'), ["titel", "did you mean 'title'"]),
        (('network = "mlp-300-100"', ""), ["workloads.0.network: missing"]),
        (("seeds = [0]", "seeds = []"), ["seeds"]),
        (('name = "dense"', 'name = "dense"\nstrength = [1]'), ["methods.0.strength", "'strengths'"]),
        (('name = "dense"', 'name = "dense"\n[[methods]]\nname = "dense"'), ["methods", "'dense'", "twice"]),
        (("[[methods]]", "[[methods]"), ["not a TOML file"]),
    ],
)
def test_bad_ones(tmp_path: Path, change: tuple[str, str], says: list[str]) -> None:
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(BadInput) as caught:
        suite.load(path)
    message = str(caught.value)
    assert message.startswith(path)
    assert "\n" not in message
    for part in says:
        assert part in message


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(BadInput, match="not a TOML file"):
        suite.load(str(path))


def test_names_and_paths_that_do_not_exist() -> None:
    with pytest.raises(BadInput, match="did you mean 'digits'"):
        suite.load("digit")
    with pytest.raises(BadInput, match=r"nowhere\.toml: no such file"):
        suite.load("nowhere.toml")
