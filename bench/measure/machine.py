"""The machine and the versions that stand in every record. Nothing here names a host, a user or a path, and
nothing raises: what cannot be found out is `unknown`, 0 or absent."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bench.records.schema import Machine

UNKNOWN = "unknown"
_PACKAGES = ("torch", "torchvision", "sparsebench", "fvcore", "numpy", "pydantic", "scikit-learn", "scipy")


def describe(device: torch.device) -> Machine:
    """The machine that `device` belongs to. cores: those this process may use; memory_gb: main memory in all,
    in GiB."""
    processor = _processor()
    on_gpu = device.type == "cuda"
    return Machine(
        device=_gpu_name(device) if on_gpu else processor,
        processor=processor,
        cores=_cores(),
        memory_gb=_memory_gb(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}".strip() or UNKNOWN,
        threads=torch.get_num_threads(),
        gpu_driver=_gpu_driver() if on_gpu else None,
    )


def versions() -> dict[str, str]:
    """Python, the packages whose behaviour may move a number, and the CUDA libraries torch was built with."""
    found = {"python": platform.python_version(), **_installed()}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    if torch.cuda.is_available() and (cudnn := torch.backends.cudnn.version()):
        found["cudnn"] = str(cudnn)
    return found


@functools.cache  # read from a file each, for every record
def _installed() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    if match := re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE):
        return match[1].strip()
    if platform.system() == "Darwin" and (brand := _output("sysctl", "-n", "machdep.cpu.brand_string")):
        return brand
    return platform.processor() or platform.machine() or UNKNOWN


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 0


def _memory_gb() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return 0.0


def _gpu_name(device: torch.device) -> str:
    try:
        return torch.cuda.get_device_name(device)
    except (AssertionError, RuntimeError):  # torch without CUDA, or no such card
        return UNKNOWN


@functools.cache  # a process of its own, and asked for with every id of a measurement
def _gpu_driver() -> str | None:
    lines = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    return lines[0].strip() if lines else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
