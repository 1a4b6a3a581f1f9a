"""`make perf` on a GPU: an epoch of resnet20 beside a bare loop written as well as can be, and several cells at once
beside one. On random images: time does not depend on them. Asserts nothing."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import methods
from bench import networks
from bench.data.augmentation import crop_and_flip
from bench.data.batches import Normalise
from bench.data.split import Dataset, Split
from bench.device import place
from bench.execute.gpu_sharing import side_by_side
from bench.execute.pool import CELLS_PER_GPU, Job, run_jobs
from bench.training.loop import Loop
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe

EPOCHS = 4
CIFAR = Recipe(
    epochs=EPOCHS,
    batch_size=512,
    optimizer="sgd",
    learning_rate=0.1,
    augmentation="crop-and-flip",
    precision="bf16",
)
TOGETHER = (4, CELLS_PER_GPU)


def random_images(shape: tuple[int, int, int], count: int, device: torch.device) -> Dataset:
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, device=device)
    train = Split(pixels, torch.randint(0, 10, (count,), device=device))
    few = Split(train.images[:512], train.labels[:512])
    half = torch.full((shape[0],), 0.5)
    return Dataset("random", train, few, 10, half, half, False, "random", 512)


def bare_epochs(dataset: Dataset, device: torch.device) -> list[float]:
    """Seconds of each epoch: one graph of crop, flip, forward, backward and update in bf16, channels-last."""
    torch.manual_seed(0)
    network = (
        networks.build("resnet20", dataset.input_shape, 10).to(device).to(memory_format=torch.channels_last)
    )
    rate = torch.tensor(CIFAR.learning_rate, device=device)
    optimizer = torch.optim.SGD(network.parameters(), rate, CIFAR.momentum, fused=True)
    normalise, noise = Normalise.of(dataset, device), torch.Generator(device).manual_seed(0)
    chosen = torch.zeros(CIFAR.batch_size, dtype=torch.int64, device=device)
    total = torch.zeros((), device=device)

    def step(indices: torch.Tensor) -> None:
        images = crop_and_flip(dataset.train.images[indices], noise)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = network(normalise(images).contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), dataset.train.labels[indices])
        loss.backward()
        optimizer.step()
        total.add_(loss.detach())

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(chosen)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(noise)
    with torch.cuda.graph(graph, stream=stream):
        step(chosen)
    seconds = []
    for _ in range(EPOCHS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for indices in torch.randperm(len(dataset.train), device=device).split(CIFAR.batch_size):
            if len(indices) == CIFAR.batch_size:
                chosen.copy_(indices)
                graph.replay()
            else:
                step(indices)
        total.item()
        seconds.append(time.perf_counter() - began)
    return seconds


def loop_epochs(dataset: Dataset, device: torch.device, network_name: str, recipe: Recipe) -> list[float]:
    """Seconds of each epoch but the first, which warms up and records; a small validation is in them."""
    torch.manual_seed(0)
    network = place(networks.build(network_name, dataset.input_shape, 10), device)
    stamps: list[float] = []
    method = methods.create("dense")

    def on_epoch(epoch: int, phase: str) -> None:
        stamps.append(time.perf_counter())

    loop = Loop(network, method, [], dataset, recipe, 0, device, on_epoch=on_epoch)
    loop.run(plan_phases(method.phases(recipe.epochs), recipe.epochs))
    for note in loop.progress.notes:
        print("  note:", note)
    return [after - before for before, after in pairwise(stamps)]


@dataclass(frozen=True)
class Training:
    """One cell's training, timed after its first epoch; leaves its start, its end and its epochs in `path`."""

    path: Path
    network: str
    epochs: int

    def run(self, report: Callable[[float, str], None]) -> bool:
        device = torch.device("cuda")
        dataset = random_images((1, 28, 28), 54000, device)
        seconds = loop_epochs(dataset, device, self.network, Recipe(epochs=self.epochs + 1))
        ended = time.time()
        self.path.write_text(f"{ended - sum(seconds)} {ended} {len(seconds)}")
        return True


class Quiet:
    def started(self, job: Job[Any]) -> None: ...
    def moved(self, job: Job[Any], fraction: float, doing: str) -> None: ...
    def ended(self, job: Job[Any], ok: bool, reason: str) -> None: ...


def epochs_a_second(network: str, cells: int, epochs: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(at) for at in range(cells)]
        jobs = [Job(path.name, Training(path, network, epochs), path.name, 1.0) for path in paths]
        with side_by_side("cuda", cells) as shared:
            run_jobs(jobs, cells, Quiet(), shared_gpu=shared)
        if cells > 1 and not shared:
            print("  no MPS here: the cells take turns")
        found = [[float(number) for number in path.read_text().split()] for path in paths]
    began, ended = min(start for start, _, _ in found), max(end for _, end, _ in found)
    return sum(count for _, _, count in found) / (ended - began)


def main() -> None:
    if not torch.cuda.is_available():
        print("  left out: there is no CUDA device")
        return
    device = torch.device("cuda")
    print(f"  on {torch.cuda.get_device_name(device)}")
    if "resnet20" in networks.available():
        dataset = random_images((3, 32, 32), 45000, device)
        bare = statistics.median(bare_epochs(dataset, device))
        cell = statistics.median(loop_epochs(dataset, device, "resnet20", CIFAR))
        print(f"  resnet20, batch 512, bf16: {cell:.2f} s an epoch, bare {bare:.2f} s: {cell / bare:.2f}")
    for network, epochs in (("mlp-300-100", 40), ("lenet5", 40)):
        alone = epochs_a_second(network, 1, epochs)
        for cells in TOGETHER:
            together = epochs_a_second(network, cells, epochs)
            print(
                f"  {network}: {cells} cells at once {together:.2f} epochs a second, one {alone:.2f}: "
                f"{together / alone:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
