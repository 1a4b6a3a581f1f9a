"""Networks of the user's own, checkpoints and streams in a suite: what is refused before training, and what runs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import bench
from bench import data, networks
from bench import suite as suites
from bench.cells import Cell
from bench.cli import main
from bench.compaction import find_sites, load_compact
from bench.errors import BadInput
from bench.execute.cell import CellRun
from bench.execute.measuring import measure_point
from bench.execute.subject import Subject
from bench.filters import Filters
from bench.measure.presets import PRESETS, planned_id
from bench.plan import make_plan
from bench.records.read import read_records
from bench.records.store import Store
from bench.run import RunOptions, _request
from tests.cli.folders import SUITE, run_here, tree, write

OWN = """
import torch
from torch import nn

def residual(input_shape, classes):
    return Residual(input_shape[0], classes, middle=4)

def streams_only(input_shape, classes):
    return Residual(input_shape[0], classes, middle=0)

class Residual(nn.Module):
    def __init__(self, channels, classes, middle):
        super().__init__()
        self.stem = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        self.branch = nn.Conv2d(6, 6, 1)
        if middle:
            self.branch = nn.Sequential(nn.Conv2d(6, middle, 1), nn.ReLU(), nn.Conv2d(middle, 6, 1))
        self.fc = nn.Linear(6, classes)
    def forward(self, x):
        x = self.stem(x)
        return self.fc((x + self.branch(x)).relu().mean((2, 3)))

def raising(input_shape, classes):
    raise RuntimeError("the disk of my laptop is full")

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)
    def forward(self, x):
        x = torch.flatten(x, 1)
        if x.sum() > 0:
            x = -x
        return self.fc(x)

def branching(input_shape, classes):
    return Branching()

def linear(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

class Summing(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 8), nn.Linear(8, 6), nn.Linear(6, 10)
    def forward(self, x):
        x = torch.cumsum(self.fc1(torch.flatten(x, 1)).relu(), 1)
        return self.fc3(self.fc2(x).relu())

def summing(input_shape, classes):
    return Summing()

def imagenet(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1000))
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan_here: None) -> None:
    (tmp_path / "user_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def suite(network: str, more: str = "") -> str:
    return SUITE.replace('"mlp-300-100"', f'"{network}"' + (f"\n{more}" if more else ""))


def refused(capsys: pytest.CaptureFixture[str], text: str) -> str:
    write(Path("mine.toml"), text)
    lines = []
    for command in ("run", "plan"):
        before = tree(Path())
        assert main([command, "mine.toml", "--results", "r"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert tree(Path()) == before
        lines.append(err)
    assert lines[0] == lines[1]
    assert lines[0].startswith("bench: mine.toml: workloads.0.")
    return lines[0]


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (
            "user_nets:raising",
            ["cannot be built for images of 8×8", "RuntimeError: the disk of my laptop is full"],
        ),
        (
            "user_nets:branching",
            ["cannot be traced by torch.fx", "control flow", "user_nets.py:32: if x.sum() > 0"],
        ),
        ("user_nets:linear", ["nothing in it can be removed (no prunable site)"]),
        ("user_nets:imagenet", ["gives (1, 1000) for one image, must be (1, 10)"]),
        ("torchvision:resnet18", ["take images with 3 channels, these have 1"]),
        ("torchvision:resnet", ["no classification model 'resnet'"]),
        ("vgg16", ["needs images of at least 32×32, got 8×8"]),
    ],
)
def test_a_network_that_cannot_be_used(
    network: str, says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, suite(network))
    assert "mine.toml: workloads.0.network" in line
    for part in [network, *says]:
        assert part in line, line


def test_an_unknown_operation_is_named_in_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """What it works on stays, the rest can go."""
    write(Path("mine.toml"), suite("user_nets:summing"))
    plan = make_plan(suites.load("mine.toml"), Filters(), None)
    assert plan.pinned == {"user_nets:summing": ("cumsum: cumsum",)}
    network = networks.build("user_nets:summing", (1, 8, 8), 10)
    assert [site.name for site in find_sites(network, torch.zeros(1, 1, 8, 8))] == ["fc2"]
    assert main(["plan", "mine.toml"]) == 0
    assert "stays  channels of user_nets:summing at cumsum: cumsum" in capsys.readouterr().out


def test_an_edited_network_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In what it computes, not in its layers."""
    write(Path("mine.toml"), suite("user_nets:residual"))

    def ids(text: str) -> list[str]:
        monkeypatch.delitem(sys.modules, "user_nets", raising=False)
        (tmp_path / "user_nets.py").write_text(text)
        importlib.invalidate_caches()
        return [cell.train_id for cell in make_plan(suites.load("mine.toml"), Filters(), None).cells]

    first, edited = ids(OWN), ids(OWN.replace("x + self.branch(x)", "x - self.branch(x)"))
    assert not set(first) & set(edited)
    assert ids(OWN) == first
    small = networks.build("mlp-300-100", (1, 8, 8), 10)
    wide = networks.build("mlp-500-300", (1, 8, 8), 10)
    assert networks.own_digest("user_nets:a", small) != networks.own_digest("user_nets:a", wide)


def test_a_network_edited_under_a_run_is_neither_trained_nor_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record would name that of before, and a compact network stands beside the one that it was cut from."""
    write(Path("mine.toml"), suite("user_nets:residual"))
    dense, magnitude, _ = make_plan(suites.load("mine.toml"), Filters(), None).cells
    cpu, store, preset = torch.device("cpu"), Store(tmp_path / "r"), next(iter(PRESETS))

    def run(cell: Cell) -> bool:
        return CellRun(cell, store.root, None, cpu, lambda fraction, doing: None).run()

    assert run(magnitude)
    monkeypatch.delitem(sys.modules, "user_nets")
    (tmp_path / "user_nets.py").write_text(OWN.replace(".relu().mean(", ".tanh().mean("))
    importlib.invalidate_caches()
    assert not run(dense)
    ((_, point),) = magnitude.points
    assert not measure_point(point, store.root, cpu, preset)
    for reason in (
        store.reason("train", dense.train_id),
        store.reason("measure", planned_id(point, cpu, preset)),
    ):
        assert reason.endswith("network 'user_nets:residual': has changed since the run was planned"), reason


def test_a_checkpoint_that_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    def start(path: str) -> str:
        return refused(capsys, suite("mlp-300-100", f'start = "{path}"'))

    assert "workloads.0.start: gone.safetensors: cannot be read" in start("gone.safetensors")
    save_file(dict(networks.build("mlp-300-100", (1, 8, 8), 7).state_dict()), "seven.safetensors")
    assert "seven.safetensors: the checkpoint does not fit" in start("seven.safetensors")
    assert "fc3.weight is (7, 100), must be (10, 100)" in start("seven.safetensors")
    assert "workloads.0.strams: unknown key (did you mean 'streams'?)" in refused(
        capsys, suite("mlp-300-100", "strams = true")
    )


def test_a_network_of_streams_alone() -> None:
    """Dense training and single weights go; what removes units is a skip, or has nothing to run."""
    write(Path("mine.toml"), suite("user_nets:streams_only"))
    plan = make_plan(suites.load("mine.toml"), Filters(), None)
    assert [cell.method.label for cell in plan.cells] == ["dense", "weights"]
    assert [skip.label for skip in plan.skips] == ["magnitude"]
    assert "residual streams or in concatenations (see `streams`)" in plan.skips[0].reason
    settings, _, magnitude, _ = Path("mine.toml").read_text().split("[[methods]]")
    write(Path("one.toml"), f"{settings}[[methods]]{magnitude}")
    with pytest.raises(BadInput, match="nothing to run: magnitude on user_nets:streams_only: all units"):
        make_plan(suites.load("one.toml"), Filters(), None)
    write(Path("mine.toml"), suite("user_nets:streams_only", "streams = true"))
    assert not make_plan(suites.load("mine.toml"), Filters(), None).skips


def test_what_a_method_is_offered() -> None:
    """Single weights go from every layer; units of a stream on request."""
    write(Path("plain.toml"), suite("user_nets:residual"))
    write(Path("streams.toml"), suite("user_nets:residual", "streams = true"))
    dataset, example = data.load("digits"), torch.zeros(1, 1, 8, 8)
    for name, of_units in (("plain", ["branch.0"]), ("streams", ["stem", "branch.0"])):
        for cell in make_plan(suites.load(f"{name}.toml"), Filters(), None).cells:
            sites = [site.name for site in Subject.of(cell, dataset, example).sites]
            assert sites == (of_units if cell.method.label == "magnitude" else ["stem", "branch.0"])


def test_a_thin_network_starts_afresh() -> None:
    """It shows what its shape learns without the weights of the checkpoint, which is not even looked at."""
    save_file(dict(networks.build("mlp-300-100", (1, 8, 8), 10).state_dict()), "start.safetensors")
    text = suite("mlp-300-100", 'start = "start.safetensors"').replace('"magnitude"', '"thin-dense"', 1)
    write(Path("mine.toml"), text)
    dense, thin, _ = make_plan(suites.load("mine.toml"), Filters(), None).cells
    Path("start.safetensors").unlink()
    dataset, example = data.load("digits"), torch.zeros(1, 1, 8, 8)
    Subject.of(thin, dataset, example).load_start(thin.workload)
    with pytest.raises(BadInput, match=r"start\.safetensors: cannot be read"):
        Subject.of(dense, dataset, example).load_start(dense.workload)


def test_a_shared_pretraining_is_that_of_a_start_but_not_of_streams() -> None:
    save_file(dict(networks.build("mlp-300-100", (1, 8, 8), 10).state_dict()), "start.safetensors")
    shared = []
    for more in ("", "streams = true", 'start = "start.safetensors"'):
        write(Path("mine.toml"), suite("mlp-300-100", more))
        cells = make_plan(suites.load("mine.toml"), Filters(), None).cells
        shared.append({cell.pretraining.id for cell in cells if cell.pretraining})
    assert shared[0]
    assert shared[0] == shared[1]
    assert not shared[0] & shared[2]


def test_a_changed_checkpoint_is_another_request(tmp_path: Path) -> None:
    """A second start of a finished run looks at it."""
    write(Path("mine.toml"), suite("mlp-300-100", 'start = "start.safetensors"'))
    options = RunOptions(results=tmp_path / "r", data_root=None, jobs=1, device="cpu")
    requests = []
    for content in (b"one", b"one", b"other"):
        Path("start.safetensors").write_bytes(content)
        requests.append(_request("mine.toml", suites.load("mine.toml"), Filters(), options))
    assert requests[0] == requests[1] != requests[2]


def test_a_start_and_streams(tmp_path: Path) -> None:
    """The start is trained on; streams are offered on request alone; each is a question of its own."""
    torch.manual_seed(9)
    state = dict(networks.build("user_nets:residual", (1, 8, 8), 10).state_dict())
    save_file(state, "start.safetensors")
    magnitude = '[[methods]]\nname = "magnitude"\nstrengths = [0.5]\n'
    frozen = "epochs = 2, learning_rate = 1e-12"
    texts = {
        "plain": suite("user_nets:residual"),
        "start": suite("user_nets:residual", 'start = "start.safetensors"').replace("epochs = 2", frozen),
        "streams": suite("user_nets:residual", "streams = true"),
    }
    ids, kept, units = {}, {}, {}
    for name, text in texts.items():
        text = text[: text.index("[[methods]]")] + magnitude
        run_here(write(Path(f"{name}.toml"), text), tmp_path / name)
        records = read_records(tmp_path / name)
        ids[name] = set(records.train)
        (point,) = records.point.values()
        kept[name], units[name] = point.kept, point.sizes
        assert point.certificate is not None
        assert point.certificate.passed
    assert not ids["plain"] & ids["streams"]
    assert units["plain"] == units["streams"] == {"stem": 6, "branch.0": 4}
    assert kept["plain"] == kept["start"] == {"stem": 6, "branch.0": 2}
    assert kept["streams"] == {"stem": 3, "branch.0": 2}
    recipes = {
        name: json.loads(bench.read_results(tmp_path / name)["recipe"].iloc[0])
        for name in ("plain", "streams")
    }
    assert recipes["streams"] == recipes["plain"] | {"streams": True}  # so that the two never share a row
    (started,) = read_records(tmp_path / "start").train.values()
    assert started.workload.start is not None
    assert started.workload.start.sha256 == networks.checkpoint_digest(Path("start.safetensors"))
    # At this rate nothing moves: what is left is half of the checkpoint.
    left = load_compact(next(iter((tmp_path / "start").glob("compact/*")))).state_dict()
    assert torch.allclose(left["stem.weight"], state["stem.weight"])
