"""What of a process a method can set for good. A worker runs one cell after another, and each has to find it as the
first did."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def restored() -> Iterator[None]:
    """After it, the process stands where it stood: working folder, and torch's defaults and modes. Nothing sets a
    default device but a method, and whether denormals are flushed cannot be asked: a worker does."""
    folder, dtype, gradients = os.getcwd(), torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    anomalies, benchmark = torch.is_anomaly_enabled(), torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        os.chdir(folder)
        torch.set_default_device(None)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
        if torch.are_deterministic_algorithms_enabled() != deterministic:  # imports for seconds
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.autograd.set_detect_anomaly(anomalies)
        torch.backends.cudnn.benchmark = benchmark
        torch.set_flush_denormal(True)
