"""A compact network on disk: `architecture.json` and `weights.safetensors`; with gates that depend on the image,
`input_gates.safetensors` too. No pickle is written or loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from bench import networks
from bench.compaction.architecture import Architecture, apply_architecture
from bench.compaction.gating import check_gates, with_gates
from bench.compaction.removal import Compacted
from bench.compaction.sites import find_sites
from bench.errors import BadInput
from bench.records.files import write_atomically
from methods.input_gate import InputGate

ARCHITECTURE, WEIGHTS, INPUT_GATES = "architecture.json", "weights.safetensors", "input_gates.safetensors"
_IMAGES, _NUMBERS = "images", ("slope", "offset", "floor")


@dataclass(frozen=True)
class Dynamic:
    """What a network with gates has beside its static part. gates: by site; images: (n, C, H, W), normalised, some of
    those it is for, since what it computes depends on the image."""

    gates: Mapping[str, InputGate]
    images: Tensor


class _Gates(BaseModel):
    """Site by site `<site>/slope` and so on in the file of the gates, and `images`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: tuple[str, ...]
    sha256: str


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
    input_gates: _Gates | None = None


@dataclass(frozen=True)
class Loaded:
    """An archive, on the CPU. network: the static part, in eval mode; dynamic: the gates that belong on it."""

    network: nn.Module
    network_name: str
    input_shape: tuple[int, int, int]
    classes: int
    dynamic: Dynamic | None

    def gated(self) -> nn.Module:
        """The whole network: the static part with its gates, if any, in place."""
        if self.dynamic is None:
            return self.network
        sites = find_sites(self.network, torch.zeros(2, *self.input_shape))
        return with_gates(self.network, sites, self.dynamic.gates)


def save_compact(
    directory: Path,
    compacted: Compacted,
    network_name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    dynamic: Dynamic | None = None,
) -> None:
    """Writes the archive into `directory`, which is made if need be. Each file appears whole or not at all;
    the architecture comes last, so that a folder cut short has none."""
    weights = _packed(compacted.network.state_dict())
    write_atomically(directory / WEIGHTS, weights)
    gates = None
    if dynamic is not None:
        numbers = {
            f"{site}/{name}": getattr(gate, name) for site, gate in dynamic.gates.items() for name in _NUMBERS
        }
        packed = _packed({**numbers, _IMAGES: dynamic.images})
        write_atomically(directory / INPUT_GATES, packed)
        gates = _Gates(sites=tuple(dynamic.gates), sha256=hashlib.sha256(packed).hexdigest())
    archive = _Archive(
        network=network_name,
        input_shape=input_shape,
        classes=classes,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        architecture=compacted.architecture,
        input_gates=gates,
    )
    write_atomically(directory / ARCHITECTURE, (archive.model_dump_json(indent=1) + "\n").encode())


def load_compact(directory: str | Path) -> nn.Module:
    """The network of an archive, with its gates, if any, in place; on the CPU, in eval mode. Raises BadInput where the
    folder is damaged."""
    return load_archive(Path(directory)).gated()


def load_archive(directory: Path) -> Loaded:
    """An archive, its gates apart. Raises BadInput where the folder is damaged."""
    path = directory / ARCHITECTURE
    try:
        archive = _Archive.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{path}: {where + ': ' if where else ''}{first['msg']}") from error
    state = _unpacked(directory / WEIGHTS, archive.weights_sha256)
    gates = archive.input_gates
    numbers = _unpacked(directory / INPUT_GATES, gates.sha256) if gates is not None else {}
    full = _full_network(path, archive)
    dtype = next((value.dtype for value in state.values() if value.is_floating_point()), torch.float32)
    example = torch.zeros(2, *archive.input_shape)
    try:
        network = apply_architecture(full, archive.architecture, example).eval()
        _as_precise_as(network, state, dtype)
        network.load_state_dict(state, strict=True)
        dynamic = None if gates is None else _dynamic(gates.sites, numbers, network, example)
    except (ValueError, RuntimeError, BadInput) as error:
        why = " ".join(str(error).split())[:300]
        raise BadInput(f"{path}: does not fit {archive.network}: {why}") from error
    return Loaded(network, archive.network, archive.input_shape, archive.classes, dynamic)


def _as_precise_as(network: nn.Module, state: Mapping[str, Tensor], default: torch.dtype) -> None:
    """Gives each floating-point tensor of `network` the precision of that of its name in `state`, others `default`."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(state[name].dtype if name in state else default)


def _dynamic(
    sites: tuple[str, ...], numbers: dict[str, Tensor], network: nn.Module, example: Tensor
) -> Dynamic:
    """Raises ValueError where `numbers` are not the gates of `sites` or do not fit the network."""
    if numbers.keys() != {_IMAGES, *(f"{site}/{name}" for site in sites for name in _NUMBERS)}:
        raise ValueError(f"{INPUT_GATES} holds {', '.join(sorted(numbers))}")
    gates = {site: InputGate(*(numbers[f"{site}/{name}"] for name in _NUMBERS)) for site in sites}
    check_gates(gates, find_sites(network, example))
    return Dynamic(gates, numbers[_IMAGES])


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    packed: bytes = save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})
    return packed


def _unpacked(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise BadInput(f"{path}: damaged, or of another {ARCHITECTURE}")
        tensors: dict[str, Tensor] = load(content)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except SafetensorError as error:
        raise BadInput(f"{path}: {error}") from error
    return tensors


def _full_network(path: Path, archive: _Archive) -> nn.Module:
    try:
        return networks.build(archive.network, archive.input_shape, archive.classes)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
