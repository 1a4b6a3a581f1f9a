"""`make perf`: ratios, measured side by side in one run. Asserts nothing; machines differ."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from bench import data, networks
from bench.data.augmentation import crop_and_flip
from bench.execute.cell import CellRun
from bench.filters import Filters
from bench.plan import make_plan
from bench.suite import Suite
from bench.training.recipe import Recipe

FEW = 2560
"""CIFAR-10 images to train on: a whole epoch of resnet20 takes minutes on a core, and a ratio needs several."""


@dataclass(frozen=True)
class Race:
    network: str
    recipe: Recipe
    rounds: int
    data: str = "mnist"


CIFAR_RECIPE = Recipe(epochs=1, optimizer="sgd", learning_rate=0.1, augmentation="crop-and-flip")
RACES = (
    Race("mlp-300-100", Recipe(epochs=8), 5),
    Race("lenet5", Recipe(epochs=1), 3),
    Race("resnet20", CIFAR_RECIPE, 3, "cifar10"),
)


def bare_loop(
    dataset: data.Dataset, test: data.Split, network_name: str, recipe: Recipe
) -> tuple[float, float]:
    """What one would write by hand: the same data, network, batches and epochs, nothing around them. Seconds of
    training with one validation at its end, and with the test split scored once."""
    torch.manual_seed(0)
    network = networks.build(network_name, dataset.input_shape, dataset.classes)
    if dataset.input_shape[0] == 3:  # faster there, and what one would do
        network = network.to(memory_format=torch.channels_last)
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(network.parameters(), recipe.learning_rate, recipe.momentum, fused=True)
    else:
        optimizer = torch.optim.Adam(network.parameters(), recipe.learning_rate, fused=True)
    steps = recipe.steps_per_epoch(len(dataset.train)) * recipe.epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss_function = nn.CrossEntropyLoss()
    mean, std = (value.reshape(1, -1, 1, 1) for value in (dataset.mean, dataset.std))

    def inputs(images: torch.Tensor) -> torch.Tensor:
        return images.float().div_(255).sub_(mean).div_(std)

    noise = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    for _ in range(recipe.epochs):
        network.train()
        for chosen in torch.randperm(len(dataset.train)).split(recipe.batch_size):
            optimizer.zero_grad(set_to_none=True)
            images = dataset.train.images.index_select(0, chosen)
            if recipe.augmentation == "crop-and-flip":
                images = crop_and_flip(images, noise)
            logits = network(inputs(images))
            loss_function(logits, dataset.train.labels.index_select(0, chosen)).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    stamps = []
    with torch.inference_mode():
        for split in (dataset.validation, test):
            for images, labels in zip(split.images.split(1024), split.labels.split(1024), strict=True):
                (network(inputs(images)).argmax(1) == labels).float().mean().item()
            stamps.append(time.perf_counter() - began)
    return stamps[0], stamps[1]


def harness(root: Path, dataset: str, network_name: str, recipe: Recipe) -> tuple[float, float]:
    """Seconds of loading, training, validating and recording, and of the whole cell with its operating point (two
    networks scored on two splits, the proof that they are equal, the costs)."""
    suite = Suite.model_validate(
        {
            "name": "perf",
            "title": "perf",
            "seeds": [0],
            "workloads": [
                {"dataset": dataset, "network": network_name, "recipe": recipe.model_dump(mode="json")}
            ],
            "methods": [{"name": "dense"}],
        }
    )
    (cell,) = make_plan(suite, Filters(), root).cells
    stamps = []
    with tempfile.TemporaryDirectory() as folder:
        run = CellRun(
            cell, Path(folder), root, torch.device("cpu"), lambda f, doing: stamps.append(time.perf_counter())
        )
        began = time.perf_counter()
        run.run()
        ended = time.perf_counter()
    return stamps[-1] - began, ended - began


def few_images(root: Path, folder: Path) -> Path:
    """An .npz file of the first images of CIFAR-10."""
    whole = np.load(root / "cifar10.npz")
    path = folder / "few.npz"
    counts = {"x_train": FEW, "y_train": FEW, "x_test": FEW // 5, "y_test": FEW // 5}
    np.savez(path, **{key: whole[key][:count] for key, count in counts.items()})
    return path


def run(race: Race, name: str, root: Path) -> None:
    dataset, test = data.load(name, root), data.load_test(name, root)
    rivals = {
        "bare": partial(bare_loop, dataset, test, race.network, race.recipe),
        "cell": partial(harness, root, name, race.network, race.recipe),
    }
    trained, whole = [], []
    bare_loop(dataset, test, race.network, race.recipe.model_copy(update={"epochs": 1}))  # warm up
    for number in range(race.rounds):
        seconds = {}
        for rival in ("bare", "cell") if number % 2 == 0 else ("cell", "bare"):
            seconds[rival] = rivals[rival]()
        trained.append(seconds["cell"][0] / seconds["bare"][0])
        whole.append(seconds["cell"][1] / seconds["bare"][1])
    for what, ratios in (("training, validation, record", trained), ("the whole cell", whole)):
        print(
            f"  {race.network:<12} {what:<30} {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} … {max(ratios):.3f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("BENCH_DATA"))
    parser.add_argument("--network", help="only this one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if options.data_root is None:
        print("MNIST is needed: give BENCH_DATA or --data-root")
        raise SystemExit(2)
    root = Path(options.data_root)
    print("harness against a bare loop, one thread; median of paired ratios (min … max)")
    for race in RACES:
        if options.network not in (None, race.network):
            continue
        if race.network not in networks.available():
            print(f"  {race.network:<12} left out: there is no such network")
        elif race.data == "mnist":
            run(race, "mnist", root)
        elif not (root / "cifar10.npz").is_file():
            print(f"  {race.network:<12} left out: it needs cifar10.npz in the data root")
        else:
            with tempfile.TemporaryDirectory() as folder:
                run(race, str(few_images(root, Path(folder))), root)


if __name__ == "__main__":
    main()
