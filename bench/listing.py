"""`bench list`: what there is to choose from."""

from __future__ import annotations

import json
from typing import Any

from bench import suite as suites


def print_list(what: str, as_json: bool) -> None:
    """A line for each entry, or a JSON list of objects."""
    entries = {"methods": _methods, "networks": _networks, "datasets": _datasets, "suites": _suites}[what]()
    if as_json:
        print(json.dumps(entries, indent=1))
        return
    width = max(len(entry["name"]) for entry in entries)
    for entry in entries:
        print(f"{entry['name']:<{width}}  {entry['says']}".rstrip())


def _methods() -> list[dict[str, Any]]:
    import methods

    entries = []
    for name in methods.available():
        kind = methods.get(name)
        traits = kind().traits
        entries.append(
            {
                "name": name,
                "says": f"{kind.title} ({traits.granularity}). {kind.paper}",
                "title": kind.title,
                "paper": kind.paper,
                "granularity": traits.granularity,
                "strengths": list(kind.strengths),
                "strength_meaning": kind.strength_meaning,
                "settings": {key: str(field.default) for key, field in kind.Config.model_fields.items()},
            }
        )
    return entries


def _networks() -> list[dict[str, Any]]:
    from bench import networks

    return [{"name": name, "says": ""} for name in networks.available()]


def _datasets() -> list[dict[str, Any]]:
    from bench import data

    says = "also: a path to an .npz file or to an image folder"
    return [{"name": name, "says": ""} for name in data.available()] + [{"name": "<path>", "says": says}]


def _suites() -> list[dict[str, Any]]:
    return [{"name": name, "says": suites.load(name).title} for name in suites.shipped()]
