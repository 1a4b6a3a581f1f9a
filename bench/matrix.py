"""`bench list matrix`: which method runs on which network, as a table with the reasons where one does not.

Nothing is trained: a method is asked (`supports`, with its default settings) about the sites that it would be offered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

import methods
from bench import networks
from bench.errors import BadInput
from bench.folder import in_one_line
from bench.offer import all_sites, skip_reason

SHAPE, CLASSES = (3, 32, 32), 10
"""The images that the networks are built for: they make no difference to what runs."""

HEADING = f"""# What runs where

Made by `bench list matrix`, with every network that comes with the suite built for {SHAPE[1]}×{SHAPE[2]} images and
every method at its default settings. `inner` and `streams` count the groups of units that can be removed, `branches`
the residual branches that can be dropped whole. Methods that remove units work on the inner ones, and on streams (units
that a residual addition or a concatenation ties together) with `streams = true` in the workload, where their docstring
does not say otherwise (heterogeneous sensitivity); single weights go from all; branches are for methods that remove
layers. ✓: runs; a number: skipped, for the reason below.
"""


@dataclass(frozen=True)
class Row:
    """A network. inner, streams, branches: how many sites of each kind; skips: method → the reason, None where it
    runs."""

    network: str
    inner: int
    streams: int
    branches: int
    skips: dict[str, str | None]


def rows(names: Iterable[str]) -> list[Row]:
    """Of the networks of these names."""
    kinds = [methods.get(name) for name in builtin()]
    found = []
    for name in names:
        network = networks.build(name, SHAPE, CLASSES)
        sites = all_sites(network, torch.zeros(1, *SHAPE))
        skips: dict[str, str | None] = {}
        for kind in kinds:
            try:
                skips[kind.name] = skip_reason(kind(), network, sites, streams=False)
            except Exception as error:  # of the hook that says so
                raise BadInput(f"method {kind.name!r} on {name!r}: {in_one_line(error)}") from error
        of = Counter(site.kind for site in sites)
        found.append(Row(name, of["inner"], of["stream"], of["branch"], skips))
    return found


def builtin() -> list[str]:
    """The methods of the suite's own, by name."""
    return [name for name in methods.available() if methods.source(name) == "builtin"]


def as_markdown(table: list[Row]) -> str:
    """The table and below it the reasons."""
    shown = builtin()
    lines = [" | ".join(["| network", "inner", "streams", "branches", *shown]) + " |"]
    lines.append("| --- " + "| ---: " * 3 + "| :---: " * len(shown) + "|")
    reasons: dict[str, int] = {}
    for row in table:
        marks = [
            "✓" if reason is None else str(reasons.setdefault(reason, len(reasons) + 1))
            for reason in (row.skips[name] for name in shown)
        ]
        counts = [str(count) for count in (row.inner, row.streams, row.branches)]
        lines.append(f"| {' | '.join([row.network, *counts, *marks])} |")
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([HEADING, *lines, "", *notes]) + "\n"
