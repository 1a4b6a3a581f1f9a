"""What of a suite is to run: its entries, the command line's filters and method files, all checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import methods
from bench.errors import BadInput, nearest, nearest_number
from bench.filters import Filters
from bench.folder import in_one_line
from bench.suite import MethodEntry, Suite, WorkloadEntry
from methods.base import Method, Traits

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Entry:
    """An entry of the suite, or a method file, opened. where: what a complaint about it begins with."""

    where: str
    entry: MethodEntry
    method: Method
    file: str | None = None


def _words(suite: Suite, valid: Iterable[str], wanted: Sequence[str], key: str) -> set[str]:
    """`wanted`, all of `valid` where nothing is wanted."""
    valid = set(valid)
    for word in wanted:
        if word not in valid:
            raise BadInput(f"--{key} {word}: {suite.where} has no such {key}{nearest(word, valid)}")
    return set(wanted) or valid


def numbers(suite: Suite, valid: Sequence[N], wanted: Sequence[N], key: str) -> list[N]:
    """`wanted` in the order of the suite, all of `valid` where nothing is wanted."""
    for number in wanted:
        if number not in valid:
            hint = nearest_number(number, valid)
            raise BadInput(f"--{key} {number:g}: {suite.where} has no such {key}{hint}")
    return [number for number in valid if not wanted or number in wanted]


def workloads(suite: Suite, filters: Filters) -> list[tuple[int, WorkloadEntry]]:
    """With their places in the suite."""
    chosen_networks = _words(suite, (w.network for w in suite.workloads), filters.networks, "network")
    chosen_datasets = _words(suite, (w.dataset for w in suite.workloads), filters.datasets, "dataset")
    return [
        (at, workload)
        for at, workload in enumerate(suite.workloads)
        if workload.network in chosen_networks and workload.dataset in chosen_datasets
    ]


def entries_of(suite: Suite, filters: Filters) -> list[Entry]:
    """The suite's entries that pass the filter, then methods that are named though the suite lacks them, then those of
    files, each with its checked config. A file counts once, however often and in whatever spelling it is named."""
    words = {word for entry in suite.methods for word in (entry.name, entry.shown)}
    lacking = _lacking(filters.methods, words)
    wanted = _words(suite, {*words, *lacking}, filters.methods, "method")
    chosen = []
    for at, entry in enumerate(suite.methods):
        where = f"{suite.where}: methods.{at}"
        try:
            method = methods.create(entry.name, **entry.config)
        except ValueError as error:
            key = "config" if isinstance(error, methods.BadConfig) else "name"
            raise BadInput(f"{where}.{key}: {error}") from None
        if {entry.name, entry.shown} & wanted:
            chosen.append(Entry(where, entry, method))
    for name in lacking:
        where = f"--method {name}"
        try:
            chosen.append(Entry(where, MethodEntry(name=name), methods.create(name)))
        except ValueError as error:
            raise BadInput(f"{where}: {error}") from None
    for file in {Path(file).resolve(): file for file in filters.files}.values():
        try:
            kind = methods.load_file(Path(file))
        except ValueError as error:
            raise BadInput(str(error)) from None
        try:
            chosen.append(Entry(file, MethodEntry(name=kind.name), kind(), file))
        except Exception as error:
            raise BadInput(f"{file}: {in_one_line(error)}") from error
    for opened in chosen:
        _check_traits(opened)
    return chosen


def _lacking(wanted: Sequence[str], words: set[str]) -> list[str]:
    """Of the wanted methods those that the suite lacks and the package, or another one, has."""
    strange = [word for word in dict.fromkeys(wanted) if word not in words]
    if not strange:
        return []
    try:
        return [word for word in strange if word in methods.available()]
    except ValueError as error:
        raise BadInput(str(error)) from None


def _check_traits(opened: Entry) -> None:
    """The first that is asked of a method."""
    try:
        traits = opened.method.traits
    except Exception as error:
        raise BadInput(f"{opened.where}: traits of {opened.entry.name!r}: {in_one_line(error)}") from error
    if not isinstance(traits, Traits):
        kind = type(traits).__name__
        raise BadInput(f"{opened.where}: traits of {opened.entry.name!r}: a {kind}, not methods.base.Traits")


def strengths_of(suite: Suite, entries: list[Entry], filters: Filters) -> dict[str, list[float]]:
    """Entry → its strengths that pass the filter. Those of a method that has but one point always do."""
    chosen: dict[str, list[float]] = {}
    grid: dict[float, None] = {}
    for opened in entries:
        entry, method = opened.entry, opened.method
        strengths = list(entry.strengths if entry.strengths is not None else method.grid)
        kind = method.traits.strength
        for strength in strengths:
            if not 0 <= strength < (1 if kind == "ratio" else math.inf):
                raise BadInput(
                    f"{opened.where}.strengths: {strength:g} is out of range ({method.strength_meaning})"
                )
        chosen[opened.where] = [
            strength
            for strength in strengths
            if kind == "none" or not filters.strengths or strength in filters.strengths
        ]
        grid |= dict.fromkeys(strengths)
    numbers(suite, sorted(grid), filters.strengths, "strength")
    return chosen
