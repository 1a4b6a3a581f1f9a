"""A suite file is checked key by key, and every complaint is one line that names the file and the key."""

from pathlib import Path

import pytest

from bench import suite
from bench.errors import BadInput
from bench.filters import Filters
from bench.plan import make_plan

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
        (
            ('name = "dense"', 'name = "dense"\nnetworks = ["mlp-300"]'),
            ["methods.0.networks", "'mlp-300'", "did you mean 'mlp-300-100'"],
        ),
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


PUBLISHED = """
budget_note = "2 epochs, the paper has 200"
[[methods]]
name = "magnitude"
label = "units"
strengths = [0.5, 0.75]
[[published]]
network = "mlp-300-100"
label = "units"
strength = 0.5
test_error = 0.0133
units = { fc1 = 110, fc2 = 71 }
weights_pruned = 0.9885
macs_ratio = 3.2
provenance = "table"
source = "a paper, table 2"
[[published]]
source = "none found: neither text nor code could be read"
"""


def with_published(*changes: tuple[str, str]) -> str:
    """`budget_note` before the first table, the rest behind."""
    note, rest = PUBLISHED.strip().split("\n", 1)
    text = f"{note}\n{GOOD.strip()}\n{rest}\n"
    for change in changes:
        assert change[0] in text
        text = text.replace(*change, 1)
    return text


def test_published_figures(tmp_path: Path) -> None:
    loaded = suite.load(write(tmp_path, with_published()))
    figures, none = loaded.published
    assert (figures.label, figures.strength, figures.units) == ("units", 0.5, {"fc1": 110, "fc2": 71})
    assert figures.has_figures
    assert not none.has_figures
    assert loaded.budget_note.startswith("2 epochs")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('label = "units"\nstrength ', 'label = "unit"\nstrength '), ["0.label", "did you mean 'units'"]),
        (('network = "mlp-300-100"\nlabel', 'network = "mlp"\nlabel'), ["0.network", "mlp-300-100"]),
        (('provenance = "table"', 'provenance = "table"\ndataset = "mnist"'), ["0.dataset", "'mnist'"]),
        (("strength = 0.5", "strength = 0.6"), ["0.strength", "did you mean 0.5?"]),
        (('label = "units"\nstrength ', 'label = "dense"\nstrength '), ["0.strength", "names its strengths"]),
        (("test_error", "test_eror"), ["0.test_eror: unknown key", "'test_error'"]),
        (("test_error = 0.0133", "test_error = 1.33"), ["0.test_error", "got 1.33"]),
        (("fc1 = 110", "fc1 = -1"), ["0.units.fc1", "got -1"]),
        (('provenance = "table"', ""), ["0.provenance: missing beside a figure"]),
        (('provenance = "table"', 'provenance = "tabel"'), ["0.provenance", "'table'"]),
        (('source = "a paper, table 2"', ""), ["0.source: missing"]),
        (('source = "none', 'provenance = "code"\nsource = "none'), ["1.provenance", "no figure"]),
        (
            ("[[methods]]", '[[workloads]]\ndataset = "mnist"\nnetwork = "mlp-300-100"\n'
             "recipe = { epochs = 1 }\n[[methods]]"),
            ["0.dataset: missing"],
        ),
    ],
)  # fmt: skip
def test_bad_published_figures(tmp_path: Path, change: tuple[str, str], says: list[str]) -> None:
    path = write(tmp_path, with_published(change))
    with pytest.raises(BadInput) as caught:
        suite.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: published.")
    assert "\n" not in message
    for part in says:
        assert part in message


def test_published_units_are_of_sites_of_the_network(tmp_path: Path) -> None:
    path = write(tmp_path, with_published(("fc2 = 71", "fc9 = 71")))
    with pytest.raises(BadInput, match=r"published\.0\.units: 'mlp-300-100' has no site 'fc9' .*'fc"):
        make_plan(suite.load(path), Filters(), None)


def test_an_entry_may_be_meant_for_some_networks_only(tmp_path: Path) -> None:
    second = '[[workloads]]\ndataset = "digits"\nnetwork = "digits-cnn"\nrecipe = { epochs = 2 }\n'
    entries = [
        f'[[methods]]\nname = "thin-dense"\nnetworks = ["{network}"]\nstrengths = [{strength}]\n'
        for network, strength in (("digits-cnn", 0.5), ("mlp-300-100", 0.7))
    ]
    plan = make_plan(suite.load(write(tmp_path, GOOD + second + "".join(entries))), Filters(), None)
    found = [(cell.method.name, cell.workload.network) for cell in plan.cells]
    assert sorted(found) == [
        ("dense", "digits-cnn"),
        ("dense", "mlp-300-100"),
        ("thin-dense", "digits-cnn"),
        ("thin-dense", "mlp-300-100"),
    ]
    assert not plan.skips


def test_a_published_label_is_the_entry_of_its_network(tmp_path: Path) -> None:
    other = '[[workloads]]\ndataset = "digits"\nnetwork = "digits-cnn"\nrecipe = { epochs = 1 }\n[[methods]]'
    entry = 'label = "units"\nnetworks = ["digits-cnn"]\nstrengths = [0.9]\n[[methods]]\nname = "magnitude"\n'
    both = with_published(
        ("[[methods]]", other),
        ('label = "units"\n', entry + 'label = "units"\nnetworks = ["mlp-300-100"]\n'),
    )
    figures, _ = suite.load(write(tmp_path, both)).published
    assert figures.strength == 0.5, "of the second entry of the label"
    with pytest.raises(BadInput, match=r"published\.0\.strength: 'units' has no 0\.9 \(did you mean 0\.75"):
        suite.load(write(tmp_path, both.replace("strength = 0.5", "strength = 0.9")))
    only = both.replace('networks = ["mlp-300-100"]', 'networks = ["digits-cnn"]').replace(
        '"units"\n', '"u"\n', 1
    )
    with pytest.raises(BadInput, match=r"published\.0\.label: 'units' is not meant for 'mlp-300-100'"):
        suite.load(write(tmp_path, only))
