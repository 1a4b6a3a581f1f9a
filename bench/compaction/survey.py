"""`python -m bench.compaction.survey`: every classification model of torchvision, half of its units removed.

Prints a Markdown table. Each model has random weights and statistics; a random half of the units of every site, inner
or stream, is off; the compact network is held against the masked one in float64. A model that cannot be compacted is
listed with the reason. The largest takes 14 GB of memory.
"""

from __future__ import annotations

import argparse
import gc
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.compaction.removal import Compacted, compact
from bench.compaction.sites import find_sites
from bench.compaction.verify import FLOAT64_BOUND
from bench.errors import BadInput
from bench.networks import separate_attention
from methods.base import Site, SparsityPlan

CLASSES = 10
SIDES = (32, 64, 75, 128, 224, 299, 384, 512, 518)
"""Of images, in the order they are tried in: the smallest that a model takes is enough."""


@dataclass(frozen=True)
class Row:
    """What became of one model. reason: why it was not compacted, or why it got no certificate."""

    name: str
    side: int = 0
    sites: int = 0
    streams: int = 0
    units: int = 0
    removed: int = 0
    before: int = 0
    after: int = 0
    difference: float = float("nan")
    pinned: tuple[str, ...] = ()
    reason: str = ""


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics, scales and shifts of the normalisations, layer scales, and weights at the scale that keeps a
    signal: with those of a fresh network many mistakes would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() > 1 and name == "weight":
                    fan_in = parameter[0].numel()
                    parameter.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
                else:
                    parameter.uniform_(0.2, 0.8, generator=generator)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.5, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
    return network


def half_off(sites: list[Site], seed: int = 0) -> SparsityPlan:
    """A random half of the units of each site, one at least stays."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for site in sites:
        order = torch.randperm(site.size, generator=generator)
        kept[site.name] = order < max(1, site.size // 2)
    return SparsityPlan(kept=kept)


def survey(name: str) -> Row:
    """One model of torchvision, by name."""
    network = randomise(_model(name)).eval()
    size = _parameters(network)
    try:
        example = _example(network)
        sites = find_sites(network, example)
        result = compact(network, half_off(sites), example)
    except BadInput as error:
        return Row(name, before=size, reason=str(error))
    return _row(name, example, sites, size, result)


def _row(name: str, example: Tensor, sites: list[Site], size: int, result: Compacted) -> Row:
    return Row(
        name=name,
        side=example.shape[-1],
        sites=len(sites),
        streams=sum(site.kind == "stream" for site in sites),
        units=sum(site.size for site in sites),
        removed=result.certificate.removed_units,
        before=size,
        after=_parameters(result.network),
        difference=result.certificate.difference_float64,
        pinned=result.pinned,
        reason="" if result.certificate.difference_float64 <= FLOAT64_BOUND else result.certificate.reason,
    )


def _published_size(name: str) -> int:
    """Parameters for the 1,000 classes of ImageNet."""
    from torchvision import models

    size: int = next(iter(models.get_model_weights(name))).meta["num_params"]
    return size


def _settings(name: str) -> dict[str, bool]:
    return {"init_weights": False} if name in ("googlenet", "inception_v3") else {}


def _model(name: str) -> nn.Module:
    from torchvision import models

    return separate_attention(models.get_model(name, weights=None, num_classes=CLASSES, **_settings(name)))


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _example(network: nn.Module) -> Tensor:
    """Random images of the smallest side that the model takes. Raises BadInput where it takes none."""
    problem = ""
    for side in SIDES:
        images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
        try:
            with torch.inference_mode():
                if bool(network(images).isfinite().all()):
                    return images
        except Exception as error:
            problem = " ".join(str(error).split())[:200]
    raise BadInput(f"no image of {', '.join(map(str, SIDES))} pixels does: {problem}")


def table(rows: Iterable[Row]) -> Iterator[str]:
    """The lines of the Markdown table, as the rows come."""
    yield "| model | image | sites | units off | removed | parameters | difference | pinned by |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    for row in rows:
        if row.sites == 0 and row.reason:
            yield f"| {row.name} | | | | | {row.before / 1e6:.2f} M | | {row.reason} |"
            continue
        share = 100 * (1 - row.after / row.before)
        yield (
            f"| {row.name} | {row.side} | {row.sites} ({row.streams}) | {row.units // 2} | {row.removed} | "
            f"{row.before / 1e6:.2f} → {row.after / 1e6:.2f} M (−{share:.0f} %) | {row.difference:.1e} | "
            f"{row.reason or _kinds(row.pinned)} |"
        )


def _kinds(pinned: tuple[str, ...]) -> str:
    return ", ".join(sorted({what.partition(": ")[2] for what in pinned}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.compaction.survey", description=__doc__)
    parser.add_argument("models", nargs="*", help="names of torchvision; all by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    from torchvision import models

    names = sorted(options.models or models.list_models(module=models), key=_published_size)
    for line in table(survey(name) for name in names):
        print(line, flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
