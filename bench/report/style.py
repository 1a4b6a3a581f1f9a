"""How figures look: sizes for print, colours that colour-blind readers tell apart, one look per method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 4.8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.dpi": 220,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
}
"""Nothing is smaller than 7 pt; fonts are embedded as TrueType, which publishers ask for."""

# Okabe and Ito (2008), black left to the dense network, their yellow darkened: it vanishes on white paper.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8F7A00")
_MARKERS = ("o", "s", "^", "D", "P", "X", "p", "<", "h", ">", "d", "8", "H")
_DASHES = ("-", "--", "-.")


class Look(NamedTuple):
    """Of one method, the same in every panel."""

    colour: str
    marker: str
    dashes: str

    def line(self, hollow: bool = False) -> dict[str, Any]:
        """What `Axes.plot` takes."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.dashes,
            "markerfacecolor": "white" if hollow else self.colour,
            "markeredgecolor": self.colour if hollow else "white",
            "markeredgewidth": 1.0 if hollow else 0.4,
        }


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A look for each label: no two share colour and marker, and a colour that comes back comes back
    dashed."""
    return {
        label: Look(
            _COLOURS[index % len(_COLOURS)],
            _MARKERS[index % len(_MARKERS)],
            _DASHES[index // len(_COLOURS) % len(_DASHES)],
        )
        for index, label in enumerate(labels)
    }


def plain_number(value: float) -> str:
    """For an axis: `12k`, `1.5M`, `0.05`."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9999:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"
