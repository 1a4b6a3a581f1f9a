"""The leaderboard: one row per data set, network, method and strength, over its seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.records.files import write_atomically
from bench.records.frame import RATIOS
from bench.report.columns import batches, shown_columns, unstable
from bench.report.groups import QUESTION, WORKLOAD, distinct_labels
from bench.report.sidecar import write_sidecar
from bench.statistics.intervals import paired_difference, t_interval

if TYPE_CHECKING:
    import pandas


def leaderboard(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Summarise a point frame (`bench.read_results(directory)`, or any selection of its rows).

    Rows are sorted by data set and network; the dense network comes first, then methods by label and
    strength. Accuracies are fractions; `*_half_width` is half a 95 % interval, NaN for a single seed.
    `speedup_b<N>` is the median over seeds of the measured speedup at batch size N, and `latency_unstable_b<N>` says
    whether some seed's measurement is unstable. `bench.report.columns` says what every column means.
    """
    import pandas

    frame = distinct_labels(frame)
    reference = _dense_accuracy(frame)
    rows = [
        _row(dict(zip([*QUESTION, "strength"], key, strict=True)), group, reference)
        for key, group in frame.groupby([*QUESTION, "strength"], sort=True, dropna=False)
    ]
    rows.sort(key=lambda row: (row["dataset"], row["network"], row["method"] != "dense", row["label"]))
    speedups = [f"speedup_b{batch}" for batch in batches(frame.columns)]
    flags = [unstable(name) for name in speedups]
    types = {name: "Int64" for name in ("seeds", "failed", "delta_pairs", "protocol_version")}
    types |= dict.fromkeys((*flags, unstable("speedup_gather_b1")), "boolean")
    board = pandas.DataFrame(rows, columns=[*_NAMES, *speedups, *flags, "latency_device", *_DYNAMIC])
    return board.astype(types)


_NAMES = [
    "dataset",
    "network",
    "label",
    "method",
    "granularity",
    "strength",
    "seeds",
    "failed",
    "failures",
    "test_accuracy",
    "test_accuracy_half_width",
    "delta",
    "delta_half_width",
    "delta_pairs",
    "parameters",
    "parameters_ratio",
    "nonzero_ratio",
    "macs",
    "macs_ratio",
    "layers",
    "dense_layers",
    "active_layers",
    "units",
    "activity",
    "step_ms",
    "budget",
    "protocol_version",
]

_MEANS = (
    "parameters",
    "macs",
    "nonzero",
    "step_ms",
    "layers",
    "dense_layers",
    "active_layers",
    "expected_macs",
    "gate_operations",
)
_DYNAMIC = ["expected_macs", "gate_operations", "speedup_gather_b1", unstable("speedup_gather_b1")]
"""Of networks with input gates, means, a median and whether that is unstable."""


def _row(
    row: dict[str, Any], group: pandas.DataFrame, reference: dict[tuple[Any, ...], dict[int, float]]
) -> dict[str, Any]:
    done, first = group[group["status"] == "done"], group.iloc[0]
    accuracy = {
        int(seed): float(value) for seed, value in zip(done["seed"], done["test_accuracy"], strict=True)
    }
    interval = t_interval(accuracy.values())
    dense = reference.get(tuple(first[WORKLOAD]), {})
    delta = paired_difference(accuracy, {} if first["method"] == "dense" else dense)
    means = {name: _mean(done[name]) for name in _MEANS}
    row |= {
        "method": first["method"],
        "granularity": str(first["granularity"]),
        "seeds": len(done),
        "failed": int((group["status"] == "failed").sum()),
        "failures": failures(group),
        "test_accuracy": interval.mean,
        "test_accuracy_half_width": interval.half_width,
        "delta": delta.mean,
        "delta_half_width": delta.half_width,
        "delta_pairs": delta.n,
        **means,
        "units": by_site(done["units"]),
        "activity": by_site(done["activity"]),
        "budget": _budget(json.loads(first["recipe"])),
        "protocol_version": first["protocol_version"],
        "latency_device": next(iter(done["latency_device"].dropna().astype("object")), None),
    }
    for name, reference_column in RATIOS.items():  # of the mean, so that a row agrees with itself
        row[f"{name}_ratio"] = _mean(done[reference_column]) / means[name] if means[name] else float("inf")
    for name in (*(f"speedup_b{batch}" for batch in batches(group.columns)), "speedup_gather_b1"):
        row[name] = float(done[name].median())
        flags = done[unstable(name)].dropna()
        row[unstable(name)] = bool(flags.any()) if len(flags) else None
    return row


def failures(group: pandas.DataFrame) -> str:
    """How many of the rows failed, and how; nothing where none did."""
    kinds = group.loc[group["status"] == "failed", "failure"].astype("object")
    return f"{len(kinds)} of {len(group)} failed: {', '.join(sorted(set(kinds)))}" if len(kinds) else ""


def _dense_accuracy(frame: pandas.DataFrame) -> dict[tuple[Any, ...], dict[int, float]]:
    """Workload → seed → test accuracy of the dense network (of its first entry, should a suite have
    several)."""
    dense = frame[(frame["method"] == "dense") & (frame["status"] == "done")].sort_values(
        "label", kind="stable"
    )
    found: dict[tuple[Any, ...], dict[int, float]] = {}
    for row in dense.to_dict("records"):
        seeds = found.setdefault(tuple(row[name] for name in WORKLOAD), {})
        seeds.setdefault(int(row["seed"]), float(row["test_accuracy"]))
    return found


def _budget(recipe: dict[str, Any]) -> float | None:
    """In passes over the train split: an integer but where epochs are parts of one. None for a recipe without."""
    if "epochs" not in recipe:
        return None
    passes: float = recipe["epochs"] * recipe.get("epoch_fraction", 1)
    return int(passes) if passes == int(passes) else passes


def _mean(column: pandas.Series) -> float:
    return (
        float(column.to_numpy(dtype="float64", na_value=float("nan")).mean()) if len(column) else float("nan")
    )


def means_by_site(column: pandas.Series) -> dict[str, float]:
    """Site → mean over the rows of a column of JSON (site → number), in the order of the network; of a site that some
    rows are without, as where only some seeds have a gate, over the others."""
    found: dict[str, list[float]] = {}
    for text in column.dropna():
        for site, value in json.loads(text).items():
            found.setdefault(site, []).append(value)
    return {site: sum(values) / len(values) for site, values in found.items()}


def by_site(column: pandas.Series) -> str | None:
    """These means as `13-25-156`, rounded; None without any."""
    return "-".join(f"{mean:.0f}" for mean in means_by_site(column).values()) or None


def to_markdown(board: pandas.DataFrame) -> str:
    """One table per data set and network, with the device its latency was measured on."""
    parts = []
    for (dataset, network), rows in board.groupby(["dataset", "network"], sort=True):
        columns = shown_columns(rows)
        lines = [f"### {dataset} · {network}", ""]
        lines.append("| " + " | ".join(column.header for column in columns) + " |")
        lines.append("| " + " | ".join("---" if column.key in _TEXT else "---:" for column in columns) + " |")
        for row in rows.to_dict("records"):
            lines.append("| " + " | ".join(column.show(row).replace("|", "\\|") for column in columns) + " |")
        devices = sorted(rows["latency_device"].dropna().unique())
        lines += ["", latency_note(devices)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def latency_note(devices: list[str]) -> str:
    """Where the speedups come from, in one line."""
    return f"Speedups measured on: {', '.join(devices)}." if devices else "Latency was not measured."


_TEXT = {"label", "granularity", "units", "activity", "failures"}


def write_leaderboard(frame: pandas.DataFrame, directory: Path) -> dict[str, Path]:
    """Write `leaderboard.md`, `.csv` and the sidecar `.json` to `directory`. The same records give the same
    bytes."""
    board = leaderboard(frame)
    paths = {suffix: directory / f"leaderboard.{suffix}" for suffix in ("md", "csv", "json")}
    write_atomically(paths["md"], to_markdown(board).encode())
    write_atomically(paths["csv"], board.to_csv(index=False, lineterminator="\n").encode())
    write_sidecar(paths["json"], frame, view="leaderboard")
    return paths
