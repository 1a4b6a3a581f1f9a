"""What the command line narrows a suite to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Filters:
    """What the command line narrows a suite to; empty means all. methods: names or labels; files: of methods that
    are added to the suite."""

    methods: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
