"""`make perf`: ratios, measured side by side in one run. Asserts nothing; machines differ."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from bench import data, networks
from bench.execute.cell import CellRun
from bench.filters import Filters
from bench.plan import make_plan
from bench.suite import Suite
from bench.training.recipe import Recipe

EPOCHS = {"mlp-300-100": 8, "lenet5": 1}
ROUNDS = {"mlp-300-100": 5, "lenet5": 3}


def bare_loop(
    dataset: data.Dataset, test: data.Split, network_name: str, recipe: Recipe
) -> tuple[float, float]:
    """What one would write by hand: the same data, network, batches and epochs, nothing around them. Seconds of
    training with one validation at its end, and with the test split scored once."""
    torch.manual_seed(0)
    network = networks.build(network_name, dataset.input_shape, dataset.classes)
    optimizer = torch.optim.Adam(network.parameters(), recipe.learning_rate, fused=True)
    steps = -(-len(dataset.train) // recipe.batch_size) * recipe.epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss_function = nn.CrossEntropyLoss()
    mean, std = (value.reshape(1, -1, 1, 1) for value in (dataset.mean, dataset.std))

    def inputs(images: torch.Tensor) -> torch.Tensor:
        return images.float().div_(255).sub_(mean).div_(std)

    began = time.perf_counter()
    for _ in range(recipe.epochs):
        network.train()
        for chosen in torch.randperm(len(dataset.train)).split(recipe.batch_size):
            optimizer.zero_grad(set_to_none=True)
            logits = network(inputs(dataset.train.images.index_select(0, chosen)))
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


def harness(root: Path, network_name: str, recipe: Recipe) -> tuple[float, float]:
    """Seconds of loading, training, validating and recording, and of the whole cell with its operating point (two
    networks scored on two splits, the proof that they are equal, the costs)."""
    suite = Suite.model_validate(
        {
            "name": "perf",
            "title": "perf",
            "seeds": [0],
            "workloads": [
                {"dataset": "mnist", "network": network_name, "recipe": recipe.model_dump(mode="json")}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("BENCH_DATA"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if options.data_root is None:
        print("MNIST is needed: give BENCH_DATA or --data-root")
        raise SystemExit(2)
    root = Path(options.data_root)
    dataset, test = data.load("mnist", root), data.load_test("mnist", root)
    print("harness against a bare loop, one thread, mnist; median of paired ratios (min … max)")
    for network_name, epochs in EPOCHS.items():
        recipe = Recipe(epochs=epochs)
        rivals = {
            "bare": partial(bare_loop, dataset, test, network_name, recipe),
            "cell": partial(harness, root, network_name, recipe),
        }
        trained, whole = [], []
        bare_loop(dataset, test, network_name, Recipe(epochs=1))  # warm up
        for number in range(ROUNDS[network_name]):
            seconds = {}
            for name in ("bare", "cell") if number % 2 == 0 else ("cell", "bare"):
                seconds[name] = rivals[name]()
            trained.append(seconds["cell"][0] / seconds["bare"][0])
            whole.append(seconds["cell"][1] / seconds["bare"][1])
        for what, ratios in (("training, validation, record", trained), ("the whole cell", whole)):
            print(
                f"  {network_name:<12} {what:<30} {statistics.median(ratios):.3f} "
                f"({min(ratios):.3f} … {max(ratios):.3f})"
            )


if __name__ == "__main__":
    main()
