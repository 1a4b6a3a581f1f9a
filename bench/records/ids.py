"""Ids: hashes of what a record is about, so that the same question has the same name on every machine.

An id is `<hash>-s<seed>`: the seed stays outside the hash, so the seeds of one question share it. A setting
that equals its default is left out of the hash, so a new setting with a default keeps every old id. The other
side of this: whoever changes a default, or what a setting means, must raise `PROTOCOL_VERSION`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from bench.records.schema import PROTOCOL_VERSION


def digest(payload: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of `payload`: keys sorted, floats by `repr`.

    Raises `ValueError` for NaN and infinities, `TypeError` for keys that are no strings and for anything but
    JSON.
    """
    return hashlib.sha256(_canonical(payload).encode()).hexdigest()[:16]


def train_id(
    dataset: str,
    dataset_fingerprint: str,
    network: str,
    recipe: Mapping[str, Any],
    recipe_defaults: Mapping[str, Any],
    method: str,
    config: Mapping[str, Any],
    config_defaults: Mapping[str, Any],
    strength: float | None,
    seed: int,
    beside_recipe: Mapping[str, Any] | None = None,
) -> str:
    """Of a training. recipe, config: fully resolved; strength: None for a training that serves all
    strengths; beside_recipe: what else of the workload is not as usual."""
    name = digest(
        {
            "stage": "train",
            "protocol": PROTOCOL_VERSION,
            "dataset": dataset,
            "dataset_fingerprint": dataset_fingerprint,
            "network": network,
            "recipe": _less_defaults(recipe, recipe_defaults),
            "method": method,
            "config": _less_defaults(config, config_defaults),
            "strength": None if strength is None else _number(strength),
            **(beside_recipe or {}),
        }
    )
    return f"{name}-s{seed}"


def point_id(train_id: str, strength: float) -> str:
    """Of the operating point at `strength` of a training."""
    name, seed = _split(train_id)
    return digest({"stage": "point", "train": name, "strength": _number(strength)}) + seed


def measure_id(point_id: str, device: str, protocol: Mapping[str, Any]) -> str:
    """Of measuring a point. device: its name (two GPUs of one type differ); protocol: how it was measured."""
    name, seed = _split(point_id)
    return digest({"stage": "measure", "point": name, "device": device, "protocol": protocol}) + seed


def _split(id: str) -> tuple[str, str]:
    name, mark, seed = id.rpartition("-s")
    if not mark:
        raise ValueError(f"no id of a record: {id!r}")
    return name, mark + seed


def _number(strength: float) -> float:
    return float(strength) + 0.0  # 1 and 1.0 are one strength, as are 0.0 and -0.0


def _canonical(value: Any) -> str:
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"keys must be strings, not {key!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _less_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from its default; nested settings are compared key by key."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if key in defaults:
            default = defaults[key]
            if isinstance(value, Mapping) and isinstance(default, Mapping) and set(default) <= set(value):
                if inner := _less_defaults(value, default):
                    kept[key] = inner
                continue
            if _canonical(value) == _canonical(default):
                continue
        kept[key] = value
    return kept
