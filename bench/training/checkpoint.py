"""State on disk: nested dictionaries of tensors and plain values as one safetensors file. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

_TENSOR = "tensor:"


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write atomically. Values may be tensors, numbers, strings, None, and lists and dictionaries of them; dictionary
    keys are strings or integers."""
    tensors: dict[str, Tensor] = {}
    described = _describe(state, "", tensors)
    blob = save(tensors, metadata={"state": json.dumps(described)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # of a full disk
        raise


def read_state(path: Path) -> dict[str, Any] | None:
    """What `write_state` wrote; None where there is no file or it is damaged (the work is then done again)."""
    try:
        with safe_open(str(path), framework="pt") as file:
            described = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        restored: dict[str, Any] = _restore(described, tensors)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return None
    return restored


def clone_state(state: Any) -> Any:
    """A deep copy that shares no tensor with the original."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: clone_state(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [clone_state(value) for value in state]
    return state


def _describe(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON that stands for `value`, its tensors moved into `tensors`. Integer keys, which JSON lacks, are marked."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return _TENSOR + name
    if isinstance(value, Mapping):
        return {
            f"{'i' if isinstance(key, int) else 's'}:{key}": _describe(inner, f"{name}/{key}", tensors)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_describe(inner, f"{name}/{at}", tensors) for at, inner in enumerate(value)]
    if isinstance(value, str):
        return "text:" + value
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"{name}: a {type(value).__name__} cannot be kept in a checkpoint")


def _restore(described: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(described, str):
        if described.startswith(_TENSOR):
            return tensors[described[len(_TENSOR) :]]
        return described[len("text:") :]
    if isinstance(described, dict):
        return {
            (int(key[2:]) if key[0] == "i" else key[2:]): _restore(value, tensors)
            for key, value in described.items()
        }
    if isinstance(described, list):
        return [_restore(value, tensors) for value in described]
    return described
