"""Several processes at work on a GPU at the same time.

By default the driver gives a GPU to one process after another: four small networks take as long together as one by
one. NVIDIA's Multi-Process Service (MPS) lets their kernels run side by side. It needs no rights and changes nothing
on the GPU, so a run of several cells starts one of its own, where it is installed, and ends it with the training;
latency is measured without it. The price: with a fault in a kernel of one, or its end in the midst of it, all lose the
GPU; the pool tries what was cut off once more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
"""Where a client finds its service. Who has set it has a service, and keeps it."""

PROBE = "import sys, torch; torch.ones(1, device=sys.argv[1]).item()"


@contextmanager
def side_by_side(device: str, workers: int) -> Iterator[Mapping[str, str]]:
    """Inside, processes with what it gives in their environment share `device`, a torch device. Nothing for a CPU or a
    single worker, nor where there is no MPS, or none that works. This process is not one of them: it asks the GPU for
    its name at most, and should not lose it with them."""
    if not device.startswith("cuda") or workers < 2:
        yield {}
        return
    if PIPES in os.environ:
        yield {PIPES: os.environ[PIPES]}
        return
    control = shutil.which(CONTROL)
    if control is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="bench-mps-", ignore_cleanup_errors=True) as folder:
        own = {PIPES: folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        try:
            yield own if _start(control, device, own) else {}
        finally:
            _call([control], own, "quit -t 5\n")


def _start(control: str, device: str, own: Mapping[str, str]) -> bool:
    """Whether a process finds its GPU through the service."""
    return _call([control, "-d"], own) and _call([sys.executable, "-c", PROBE, device], own)


def _call(command: list[str], own: Mapping[str, str], text: str = "") -> bool:
    """Whether it went well. The service sees all GPUs: it would number those of CUDA_VISIBLE_DEVICES anew, and so would
    then its clients."""
    environment = {**os.environ, **own}
    if Path(command[0]).name == CONTROL:
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            command, env=environment, input=text, text=True, capture_output=True, timeout=60
        )
        return done.returncode == 0
    return False
