"""Where a results folder keeps what is no record."""

from __future__ import annotations

from pathlib import Path


def trained(results: Path, train_id: str) -> Path:
    """The trained network with its method state; while training runs, the checkpoint."""
    return results / "trained" / f"{train_id}.safetensors"


def pretrained(results: Path, pretraining_id: str) -> Path:
    """A network after the plain training that several cells share."""
    return results / "pretrained" / f"{pretraining_id}.safetensors"


def compact(results: Path, point_id: str) -> Path:
    """The folder of a compact network: its architecture and weights."""
    return results / "compact" / point_id


def report(results: Path) -> Path:
    """The folder of the leaderboard and the figures."""
    return results / "report"
