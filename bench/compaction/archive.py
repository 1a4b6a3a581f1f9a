"""A compact network on disk: `architecture.json` and `weights.safetensors`. No pickle is written or
loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from bench import networks
from bench.compaction.architecture import Architecture, apply_architecture
from bench.compaction.removal import Compacted
from bench.errors import BadInput
from bench.records.files import write_atomically

ARCHITECTURE, WEIGHTS = "architecture.json", "weights.safetensors"


class _Archive(BaseModel):
    """network: name in `bench.networks`, or `package.module:factory`. input_shape: (C, H, W). weights_sha256:
    of the weights file, so that a folder of two halves that do not belong together is found out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    archive_version: Literal[1] = 1
    network: str
    input_shape: tuple[int, int, int]
    classes: int
    weights_sha256: str
    architecture: Architecture


def save_compact(
    directory: Path, compacted: Compacted, network_name: str, input_shape: tuple[int, int, int], classes: int
) -> None:
    """Writes the archive into `directory`, which is made if need be. Each file appears whole or not at all;
    the architecture comes last, so that a folder cut short has none."""
    state = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in compacted.network.state_dict().items()
    }
    weights = save(state)
    archive = _Archive(
        network=network_name,
        input_shape=input_shape,
        classes=classes,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        architecture=compacted.architecture,
    )
    write_atomically(directory / WEIGHTS, weights)
    write_atomically(directory / ARCHITECTURE, (archive.model_dump_json(indent=1) + "\n").encode())


def load_compact(directory: Path) -> nn.Module:
    """The network of an archive, on the CPU, in eval mode. Raises BadInput where the folder is damaged."""
    directory = Path(directory)
    try:
        archive = _Archive.model_validate_json((directory / ARCHITECTURE).read_bytes())
    except OSError as error:
        raise BadInput(f"{directory / ARCHITECTURE}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(
            f"{directory / ARCHITECTURE}: {where + ': ' if where else ''}{first['msg']}"
        ) from error
    try:
        weights = (directory / WEIGHTS).read_bytes()
        if hashlib.sha256(weights).hexdigest() != archive.weights_sha256:
            raise BadInput(f"{directory / WEIGHTS}: damaged, or of another {ARCHITECTURE}")
        state = load(weights)
    except OSError as error:
        raise BadInput(f"{directory / WEIGHTS}: cannot be read ({error.strerror})") from error
    except SafetensorError as error:
        raise BadInput(f"{directory / WEIGHTS}: {error}") from error
    full = _full_network(directory / ARCHITECTURE, archive)
    dtype = next((value.dtype for value in state.values() if value.is_floating_point()), torch.float32)
    try:
        network = apply_architecture(full, archive.architecture, torch.zeros(2, *archive.input_shape)).to(
            dtype
        )
        network.load_state_dict(state, strict=True)
    except (ValueError, RuntimeError, BadInput) as error:
        why = " ".join(str(error).split())[:300]
        raise BadInput(f"{directory / ARCHITECTURE}: does not fit {archive.network}: {why}") from error
    return network.eval()


def _full_network(path: Path, archive: _Archive) -> nn.Module:
    try:
        return networks.build(archive.network, archive.input_shape, archive.classes)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
