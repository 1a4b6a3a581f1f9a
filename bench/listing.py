"""`bench list`: what there is to choose from."""

from __future__ import annotations

import json
from typing import Any

from bench import suite as suites
from bench.errors import BadInput


def print_list(what: str, as_json: bool) -> None:
    """A line for each entry, or a JSON list of objects."""
    if what == "matrix":
        _print_matrix(as_json)
        return
    entries = {"methods": _methods, "networks": _networks, "datasets": _datasets, "suites": _suites}[what]()
    if as_json:
        print(json.dumps(entries, indent=1))
        return
    width = max(len(entry["name"]) for entry in entries)
    for entry in entries:
        print(f"{entry['name']:<{width}}  {entry['says']}".rstrip())


def _print_matrix(as_json: bool) -> None:
    import dataclasses

    from bench import matrix, networks

    table = matrix.rows(networks.available())
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in table], indent=1))
    else:
        print(matrix.as_markdown(table), end="")


def _methods() -> list[dict[str, Any]]:
    import dataclasses

    import methods

    try:
        opened = [methods.create(name) for name in methods.available()]
        traits = [dataclasses.asdict(method.traits) for method in opened]
    except ValueError as error:  # a file or an entry point that gives no method
        raise BadInput(str(error)) from None
    entries = []
    for method, told in zip(opened, traits, strict=True):
        kind = type(method)
        entries.append(
            {
                "name": kind.name,
                "says": f"{kind.title} ({told['granularity']}). {kind.paper}",
                "title": kind.title,
                "paper": kind.paper,
                "source": methods.source(kind.name),
                "traits": told,
                "strengths": list(kind.strengths),
                "strength_meaning": kind.strength_meaning,
                "settings": method.config.model_dump(mode="json"),
            }
        )
    return entries


SIZES = {"digits": ((1, 8, 8), 10), "mnist": ((1, 28, 28), 10), "cifar10": ((3, 32, 32), 10)}
"""The data sets that `bench list networks` sizes the networks by."""


def _networks() -> list[dict[str, Any]]:
    from bench import networks
    from bench.measure.size import parameters

    entries = []
    for name in networks.available():
        counts: dict[str, int | None] = {}
        for dataset, (shape, classes) in SIZES.items():
            try:
                counts[dataset] = parameters(networks.outline(name, shape, classes))
            except BadInput:
                counts[dataset] = None
        says = ", ".join(
            f"{count:,} on {dataset}" if count is not None else f"not for {dataset}"
            for dataset, count in counts.items()
        )
        entries.append({"name": name, "says": f"parameters: {says}", "parameters": counts})
    others = {
        "torchvision:<model>": "any of torchvision's classification models, such as torchvision:resnet50; with "
        "@DEFAULT behind it, training starts from its pretrained weights",
        "<package.module:factory>": "one of your own: a function (input_shape, classes) → torch.nn.Module",
    }
    return [*entries, *({"name": name, "says": says, "parameters": {}} for name, says in others.items())]


def _datasets() -> list[dict[str, Any]]:
    from bench import data

    says = "also: a path to an .npz file or to an image folder"
    return [{"name": name, "says": ""} for name in data.available()] + [{"name": "<path>", "says": says}]


def _suites() -> list[dict[str, Any]]:
    return [{"name": name, "says": suites.load(name).title} for name in suites.shipped()]
