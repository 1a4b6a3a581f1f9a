"""Figures for a paper: accuracy against MACs, parameters and measured latency, one panel per network.

Every seed is a faint dot, the line of a method goes through the means over seeds by rising strength, the
front over the means is a broad grey step, the dense network a black star, one for each budget. Where a method
zeroes single weights, the parameters figure shows its non-zero parameters with hollow markers and leaves it off
the front: without a sparse format nothing was saved.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.records.files import write_atomically
from bench.report.columns import batches
from bench.report.groups import distinct_labels
from bench.report.sidecar import write_sidecar
from bench.report.style import STYLE, Look, looks, plain_number
from bench.statistics.fronts import pareto_front

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDTH = 7.0
"""Inches: the text width of a two-column paper, so that nothing is scaled and 7 pt stay 7 pt."""

_PANEL_HEIGHT = {1: 2.9, 2: 2.7, 3: 2.4}
"""Inches, by how many panels stand side by side (at most three)."""
_LEGEND_COLUMNS = 3
_LEGEND_WIDTH = (75, 125)
"""Characters of a line of the legend, beside one panel and below several."""
_DEVICE_WIDTH = 28
"""Characters that a line below a panel has room for, where three stand side by side."""
_LOG_FROM = 3.0
"""Ratio of the largest to the smallest cost from which the axis is logarithmic."""


class View(NamedTuple):
    """One figure. name: of its files; column: of the point frame; axis: what is on x, with its unit; measured: on a
    device, which each panel names."""

    name: str
    column: str
    axis: str
    measured: bool = False


class _Mean(NamedTuple):
    """One operating point. costs, accuracies: of its seeds (accuracy in percent); hollow: weights were
    zeroed."""

    label: str
    costs: np.ndarray
    accuracies: np.ndarray
    hollow: bool

    @property
    def cost(self) -> float:
        return float(self.costs.mean())

    @property
    def accuracy(self) -> float:
        return float(self.accuracies.mean())


def views(frame: pandas.DataFrame) -> list[View]:
    """The figures that `frame` has numbers for: latency at the smallest and the largest measured batch
    size."""
    found = [View("macs", "macs", "MACs per image"), View("parameters", "parameters", "parameters")]
    measured = [batch for batch in batches(frame.columns) if frame[f"latency_ms_b{batch}"].notna().any()]
    for batch in sorted({*measured[:1], *measured[-1:]}):
        axis = f"measured latency, ms (batch {batch})"
        found.append(View(f"latency-b{batch}", f"latency_ms_b{batch}", axis, measured=True))
    return found


def write_figures(frame: pandas.DataFrame, directory: Path) -> list[Path]:
    """Write `<data set>-accuracy-<view>.pdf`, `.png` and `.json` (the records) for every data set and view of
    a point frame, of a path its words. The same records give the same bytes, with the same matplotlib."""
    import matplotlib

    paths: list[Path] = []
    labelled = distinct_labels(frame)
    for dataset, rows in labelled.groupby("dataset", sort=True):
        for view in views(rows):
            stem = f"{_in_a_name(str(dataset))}-accuracy-{view.name}"
            with matplotlib.rc_context():
                matplotlib.rcdefaults()  # a figure must not depend on the settings of whoever makes it
                for name, value in STYLE.items():
                    matplotlib.rcParams[name] = value  # type: ignore[index]
                figure = draw(rows, view)
                for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", None)):
                    buffer = io.BytesIO()
                    figure.savefig(buffer, format=suffix, metadata=metadata)
                    paths.append(directory / f"{stem}.{suffix}")
                    write_atomically(paths[-1], buffer.getvalue())
            used = frame[frame["dataset"] == dataset]
            paths.append(write_sidecar(directory / f"{stem}.json", used, view=view.name))
    return paths


def _in_a_name(dataset: str) -> str:
    """What files are called by: a data set may be the path of one, and its folder is not where figures belong."""
    return re.sub(r"[^\w.-]+", "-", dataset).strip("-.")


def draw(rows: pandas.DataFrame, view: View) -> Figure:
    """The figure of one data set. rows: of a point frame, with distinct labels."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    networks = sorted(rows["network"].unique())
    means = {network: _means(rows[rows["network"] == network], view) for network in networks}
    labels = sorted({mean.label for group in means.values() for mean in group})
    # Of all methods, drawn or not: one looks the same in every figure of the data set.
    look = looks(sorted(rows.loc[rows["method"] != "dense", "label"].unique()))
    across = min(max(_PANEL_HEIGHT), len(networks))
    down = math.ceil(len(networks) / across)
    figure = Figure((WIDTH, _PANEL_HEIGHT[across] * down), STYLE["savefig.dpi"], layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for index, axis in enumerate(axes.flat):
        if index >= len(networks):
            axis.set_axis_off()
            continue
        _panel(axis, rows[rows["network"] == networks[index]], means[networks[index]], view, look)
        if index % across == 0:
            axis.set_ylabel("test accuracy, %")
    hollow = {mean.label for group in means.values() for mean in group if mean.hollow}
    handles = [
        Line2D([], [], color="black", marker="*", markersize=8, linestyle=":", linewidth=0.8, label="dense"),
        Line2D([], [], color="0.8", linewidth=3.5, label="front of the means"),
    ]
    for label in labels:
        text = textwrap.fill(label + (" (non-zero)" if label in hollow else ""), _LEGEND_WIDTH[across > 1])
        handles.append(Line2D([], [], label=text, **look[label].line(label in hollow)))
    _add_legend(figure, handles, below=across > 1)
    return figure


def _add_legend(figure: Figure, handles: list[Line2D], below: bool) -> None:
    """Below the panels, in as many columns as the page has room for, or beside the only one; the page grows with it,
    for what does not fit is cut off."""
    for columns in range(_LEGEND_COLUMNS if below else 1, 0, -1):
        legend = figure.legend(
            handles=handles,
            loc="outside lower center" if below else "outside right center",
            ncols=columns,
            frameon=False,
            handlelength=2.8,
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    lines = [str(handle.get_label()).count("\n") + 1 for handle in handles]
    height = 0.15 * max(sum(part) for part in np.array_split(lines, columns))
    panels = figure.get_figheight()
    figure.set_figheight(panels + height if below else max(panels, height + 0.15))


def _means(rows: pandas.DataFrame, view: View) -> list[_Mean]:
    """The operating points of one network that have both numbers, dense apart, by label and strength."""
    found: list[_Mean] = []
    methods = rows[(rows["method"] != "dense") & (rows["status"] == "done")]
    for (label, _), seeds in methods.groupby(["label", "strength"], sort=True):
        hollow = view.name == "parameters" and set(seeds["granularity"]) == {"weight"}
        costs = _numbers(seeds["nonzero" if hollow else view.column])
        accuracies = 100 * _numbers(seeds["test_accuracy"])
        known = ~(np.isnan(costs) | np.isnan(accuracies))
        if known.any():
            found.append(_Mean(str(label), costs[known], accuracies[known], hollow))
    return found


def _panel(axis: Axes, rows: pandas.DataFrame, means: list[_Mean], view: View, look: dict[str, Look]) -> None:
    dense = _dense(rows, view)
    seen = [value for mean in means for value in mean.accuracies.tolist()]
    low, high = _accuracy_range(seen, [accuracy for _, accuracy in dense])

    solid = [mean for mean in means if not mean.hollow]
    costs = [*(mean.cost for mean in solid), *(cost for cost, _ in dense)]
    accuracies = [*(mean.accuracy for mean in solid), *(accuracy for _, accuracy in dense)]
    front = pareto_front(costs, accuracies)
    steps: dict[str, Any] = {"where": "post", "color": "0.8", "linewidth": 3.5, "zorder": 1}
    axis.step([costs[i] for i in front], [accuracies[i] for i in front], **steps)
    for label, shape in look.items():
        mine = [mean for mean in means if mean.label == label]
        if not mine:
            continue
        line = shape.line(mine[0].hollow)
        axis.plot([mean.cost for mean in mine], [mean.accuracy for mean in mine], zorder=3, **line)
        dots: dict[str, Any] = {
            "linestyle": "none",
            "color": shape.colour,
            "alpha": 0.45,
            "markeredgewidth": 0,
            "zorder": 2,
        }
        arrow: dict[str, Any] = {
            "marker": "v",
            "color": shape.colour,
            "markersize": 5.5,
            "clip_on": False,
            "zorder": 4,
        }
        for mean in mine:
            shown = mean.accuracies >= low
            axis.plot(mean.costs[shown], mean.accuracies[shown], marker="o", markersize=2.8, **dots)
            if mean.accuracy < low:
                axis.plot([mean.cost], [low], **arrow)
    for cost, accuracy in dense:
        axis.axhline(accuracy, color="black", linestyle=":", linewidth=0.8, zorder=1.5)
        axis.plot([cost], [accuracy], "*", color="black", markersize=9, zorder=5)
    axis.set_ylim(low, high)
    _scale_cost(
        axis, [cost for cost in (*(mean.cost for mean in means), *(cost for cost, _ in dense)) if cost > 0]
    )
    below = [mean.accuracy for mean in means if mean.accuracy < low]
    alone = sum(int((mean.accuracies < low).sum()) for mean in means if mean.accuracy >= low)
    _describe(axis, rows, view, below, alone)


def _dense(rows: pandas.DataFrame, view: View) -> list[tuple[float, float]]:
    """Mean cost and accuracy of the dense network, of each budget where there are several. The cost is NaN where it was
    not measured."""
    dense = rows[(rows["method"] == "dense") & (rows["status"] == "done")]
    groups = [seeds for _, seeds in dense.groupby("label", sort=True)]
    return [(_mean(seeds[view.column]), 100 * _mean(seeds["test_accuracy"])) for seeds in groups]


def _accuracy_range(accuracies: list[float], dense: list[float]) -> tuple[float, float]:
    """The accuracies to show, in percent.

    Collapsed points must not squeeze all others into the top of the panel: the axis reaches one and a half
    times as far down as three quarters of the points fell, and at most 40 points.
    """
    known = [value for value in (*accuracies, *dense) if not math.isnan(value)]
    if not known:
        return 0.0, 100.0
    top = max(known)
    reference = min(dense, default=top)
    reach = min(40.0, max(2.0, 1.5 * (reference - float(np.quantile(known, 0.25)))))
    bottom = max(min(known), reference - reach)
    margin = 0.06 * max(top - bottom, 0.5)
    return max(0.0, bottom - margin), top + margin


def _scale_cost(axis: Axes, costs: list[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    spread = max(costs) / min(costs) if costs else 1.0
    if spread > _LOG_FROM:
        per_decade = {1: (1.0, 2.0, 3.0, 5.0, 7.0), 2: (1.0, 2.0, 5.0), 3: (1.0, 3.0)}
        subs = per_decade.get(math.ceil(math.log10(spread)), (1.0,))
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=8))
        axis.xaxis.set_minor_locator(NullLocator())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))


def _describe(axis: Axes, rows: pandas.DataFrame, view: View, below: list[float], alone: int) -> None:
    """The network above; below what is on x, and what the panel cannot show: means, and single seeds of other means."""
    lines = [view.axis]
    if view.measured:
        devices = ", ".join(sorted(rows["latency_device"].dropna().astype("object").unique()))
        lines += textwrap.wrap(f"on {devices}", _DEVICE_WIDTH)
    if below:
        lines.append(f"▼ {len(below)} below the axis, down to {min(below):.0f} %")
    if alone:
        lines.append(f"{alone} dot{'s' * (alone > 1)} of single seeds below the axis")
    failed = rows[rows["status"] == "failed"]
    if len(failed):
        kinds = ", ".join(sorted(failed["failure"].astype("object").unique()))
        lines.append(f"{len(failed)} of {len(rows)} failed: {kinds}")
    axis.set_title(rows["network"].iloc[0])
    axis.set_xlabel("\n".join(lines))


def _mean(column: pandas.Series) -> float:
    values = _numbers(column)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def _numbers(column: Any) -> np.ndarray:
    return np.asarray(column.to_numpy(dtype="float64", na_value=math.nan))
