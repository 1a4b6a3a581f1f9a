"""`bench doctor`: what this machine has, for a report of a problem."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench import data
from bench.device import resolve
from bench.measure.machine import describe, versions
from bench.measure.training_speed import advice

if TYPE_CHECKING:
    from rich.console import Console

CPU = torch.device("cpu")


def print_doctor(data_root: Path | None, console: Console, network: str | None = None) -> None:
    """Versions, devices, and which data sets lie in the data root; of `network` what a training step takes on the CPU.

    Raises BadInput for a network that there is not.
    """
    timed = [] if network is None else advice(network, describe(CPU).cores)
    lines = [f"{name:<14} {version}" for name, version in versions().items()]
    for device in [CPU, resolve("auto")] if torch.cuda.is_available() else [CPU]:
        machine = describe(device)
        lines.append(f"{device.type:<14} {machine.device}, {machine.cores} cores, {machine.memory_gb:.0f} GB")
    lines.append(f"{'data root':<14} {data_root or 'none: give --data-root or BENCH_DATA'}")
    found = sorted(path.name for path in data_root.iterdir()) if data_root and data_root.is_dir() else []
    lines.append(f"{'there':<14} {', '.join(found) or 'nothing'}")
    lines.append(f"{'data sets':<14} {', '.join(data.available())}")
    for line in [*lines, *timed]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
