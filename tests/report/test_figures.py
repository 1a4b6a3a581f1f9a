import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pandas
import pytest
from records_factory import METHODS, point_record, suite_records, train_record

from bench.records.schema import Failure
from bench.report.figures import _accuracy_range, draw, views, write_figures
from bench.report.groups import distinct_labels
from bench.report.style import STYLE, looks, plain_number

Frames = Callable[..., pandas.DataFrame]
LABELS = ("dense", "magnitude", "magnitude-weights", "random")


def test_pdf_png_and_sidecar_of_every_view(frame_of: Frames, tmp_path: Path) -> None:
    frame = frame_of(suite_records(networks=["lenet5"], labels=LABELS, seeds=[0, 1]))
    paths = write_figures(frame, tmp_path / "figures")
    names = {path.name for path in paths}
    for view in ("macs", "parameters", "latency-b1", "latency-b256"):
        assert {f"digits-accuracy-{view}.{suffix}" for suffix in ("pdf", "png", "json")} <= names
    sidecar = json.loads((tmp_path / "figures" / "digits-accuracy-macs.json").read_text())
    assert sidecar["records"]["point"] == sorted(frame["id"])
    assert len(sidecar["records_digest"]) == 16


def test_of_a_data_set_by_path_they_lie_in_the_folder_too(frame_of: Frames, tmp_path: Path) -> None:
    data = tmp_path / "data" / "my own.npz"
    train = train_record("dense", dataset=str(data))
    paths = write_figures(frame_of([train, point_record(train, 0.0)]), tmp_path / "figures")
    assert {path.parent for path in paths} == {tmp_path / "figures"}
    assert paths[0].name.endswith("data-my-own.npz-accuracy-macs.pdf")
    assert not data.parent.exists()


def test_the_same_records_give_the_same_bytes(frame_of: Frames, tmp_path: Path) -> None:
    frame = frame_of(suite_records(networks=["lenet5"], labels=LABELS, seeds=[0, 1], measured=False))
    first = write_figures(frame, tmp_path / "a")
    second = write_figures(frame.sample(frac=1, random_state=1), tmp_path / "b")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    assert b"CreationDate" not in first[0].read_bytes()


def test_fonts_are_embedded_as_truetype_and_the_page_is_seven_inches(
    frame_of: Frames, tmp_path: Path
) -> None:
    frame = frame_of(suite_records(["lenet5"], labels=LABELS, seeds=[0], measured=False))
    pdf = write_figures(frame, tmp_path)[0].read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    (width,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+)", pdf)
    assert float(width) == pytest.approx(7.0 * 72)


def test_no_text_is_smaller_than_seven_points(frame_of: Frames, tmp_path: Path) -> None:
    frame = frame_of(suite_records(seeds=[0], measured=False))
    pdf = write_figures(frame, tmp_path)[0].read_bytes()
    content = b"".join(
        zlib.decompress(stream) if stream[:1] == b"\x78" else stream
        for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    )
    sizes = {float(size) for size in re.findall(rb"/F\S+ ([\d.]+) Tf", content)}
    assert sizes
    assert min(sizes) >= 7


def test_failures_and_collapsed_points_are_noted(frame_of: Frames) -> None:
    failed = train_record("magnitude", "lenet5", 5, failure=Failure(kind="diverged", reason="x"))
    frame = frame_of([*suite_records(networks=["lenet5"], measured=False), failed])
    rows = distinct_labels(frame)
    figure = draw(rows, views(rows)[0])
    (axis,) = [axis for axis in figure.axes if axis.get_title()]
    assert axis.get_title() == "lenet5"
    assert f"4 of {len(rows)} failed: diverged" in axis.get_xlabel()
    assert "below the axis, down to 12 %" in axis.get_xlabel()
    assert axis.get_ylim()[0] > 60


def test_a_seed_below_the_axis_whose_mean_is_above_is_noted(frame_of: Frames) -> None:
    trains = [train_record("magnitude", "lenet5", seed) for seed in (0, 1, 2)]
    points = [point_record(train, 0.5, value) for train, value in zip(trains, (0.98, 0.98, 0.1), strict=True)]
    dense = train_record("dense", "lenet5")
    rows = distinct_labels(frame_of([*trains, *points, dense, point_record(dense, 0.0, 0.98)]))
    (axis,) = draw(rows, views(rows)[0]).axes
    assert 10 < axis.get_ylim()[0] < 100 * (0.98 + 0.98 + 0.1) / 3
    assert "1 dot of single seeds below the axis" in axis.get_xlabel()
    assert "▼" not in axis.get_xlabel()


def test_a_panel_names_the_device_of_its_latency(frame_of: Frames) -> None:
    """Networks may have one each; costs that are counted have none."""
    rows = distinct_labels(frame_of(suite_records(networks=["lenet5", "mlp-300-100"], seeds=[0])))
    rows["latency_device"] = rows["network"].map({"lenet5": "GPU", "mlp-300-100": "CPU"})
    for view in views(rows):
        panels = {axis.get_title(): axis.get_xlabel() for axis in draw(rows, view).axes if axis.get_title()}
        assert ("on GPU" in panels["lenet5"]) == ("on CPU" in panels["mlp-300-100"]) == view.measured
        assert "on CPU" not in panels["lenet5"]
    assert [view.measured for view in views(rows)] == [False, False, True, True]


def test_one_line_per_method_and_a_dot_per_seed(frame_of: Frames) -> None:
    rows = distinct_labels(frame_of(suite_records(networks=["lenet5"], labels=["dense", "magnitude"])))
    figure = draw(rows, views(rows)[0])
    lines = figure.axes[0].get_lines()
    assert [
        len(line.get_xdata()) for line in lines if line.get_linestyle() == "-" and line.get_zorder() == 3
    ] == [4]
    dots = sum(len(line.get_xdata()) for line in lines if line.get_alpha())
    assert dots == 4 * 3
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert legend == {"dense", "front of the means", "magnitude"}


def test_dense_networks_of_two_budgets_are_two_stars(frame_of: Frames) -> None:
    """Their mean would be no network at all."""
    trains = [train_record("dense", "lenet5", epochs=epochs) for epochs in (4, 20)]
    points = [point_record(train, 0.0, accuracy) for train, accuracy in zip(trains, (0.9, 0.98), strict=True)]
    rows = distinct_labels(frame_of([*trains, *points]))
    lines = draw(rows, views(rows)[0]).axes[0].get_lines()
    stars = [float(line.get_ydata()[0]) for line in lines if line.get_marker() == "*"]
    assert sorted(stars) == pytest.approx([90.0, 98.0])


def test_zeroed_weights_are_hollow_and_off_the_front(frame_of: Frames) -> None:
    rows = distinct_labels(
        frame_of(suite_records(networks=["lenet5"], labels=["dense", "magnitude-weights"]))
    )
    parameters = next(view for view in views(rows) if view.name == "parameters")
    figure = draw(rows, parameters)
    assert "magnitude-weights (non-zero)" in {text.get_text() for text in figure.legends[0].get_texts()}
    front = next(line for line in figure.axes[0].get_lines() if line.get_drawstyle() == "steps-post")
    assert list(front.get_xdata()) == [431_080], "dense alone"


def test_latency_is_drawn_only_where_it_was_measured(frame_of: Frames) -> None:
    frame = frame_of(suite_records(labels=["magnitude"], seeds=[0], measured=False))
    assert [view.name for view in views(frame)] == ["macs", "parameters"]


@pytest.mark.parametrize("networks", [["lenet5"], ["lenet5", "mlp-300-100"]])
@pytest.mark.parametrize("words", [1, 6, 20])
def test_the_legend_is_on_the_page(networks: list[str], words: int, frame_of: Frames) -> None:
    """Of many methods and of long labels; what is beyond the page is cut off."""
    labels = ["dense", *(f"method {i:02} [{'setting=1, ' * words}]" for i in range(30))]
    rows = distinct_labels(frame_of(suite_records(networks, labels, [0.5], [0], measured=False)))
    with matplotlib.rc_context(STYLE):
        figure = draw(rows, views(rows)[0])
        figure.draw_without_rendering()
    (legend,) = figure.legends
    page, box = figure.bbox, legend.get_window_extent()
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert page.y0 <= box.y0 < box.y1 <= page.y1
    assert min(axis.get_position().width for axis in figure.axes) > 0.2


def test_a_method_looks_the_same_in_every_figure(frame_of: Frames) -> None:
    """Also where another before it has no latency."""
    records = suite_records(["lenet5"], ["dense", "magnitude", "random"], seeds=[0])
    rows = distinct_labels(frame_of(records))
    rows.loc[rows["label"] == "magnitude", ["latency_ms_b1", "latency_ms_b256"]] = float("nan")
    seen = {}
    for view in views(rows):
        (legend,) = draw(rows, view).legends
        lines = {line.get_label(): (line.get_color(), line.get_marker()) for line in legend.get_lines()}
        assert ("magnitude" in lines) == (not view.measured)
        seen[view.name] = lines["random"]
    assert len(seen) == 4
    assert len(set(seen.values())) == 1


def test_the_accuracy_axis_survives_collapse() -> None:
    low, high = _accuracy_range([97.0, 96.5, 96.0, 95.0, 94.0, 10.0], [97.5])
    assert 85 < low < 94
    assert 97.5 < high < 99
    low, _ = _accuracy_range([10.0] * 5 + [96.0], [97.5])
    assert low > 50
    low, _ = _accuracy_range([97.4, 97.3, 97.2], [97.5])
    assert 97.0 < low < 97.2
    assert _accuracy_range([], []) == (0.0, 100.0)


def test_a_dozen_methods_look_different() -> None:
    dozen = [f"method {i}" for i in range(14)]
    assert len({look[:2] for look in looks(dozen).values()}) == 14
    assert len({(look.colour, look.dashes) for look in looks(dozen).values()}) == 14
    assert len(METHODS) <= 14


@pytest.mark.parametrize(
    ("value", "text"), [(12_000, "12k"), (1_500_000, "1.5M"), (0.05, "0.05"), (1000, "1k")]
)
def test_plain_numbers(value: float, text: str) -> None:
    assert plain_number(value) == text


def test_a_network_where_everything_failed_still_has_its_panel(frame_of: Frames, tmp_path: Path) -> None:
    failure = Failure(kind="diverged", reason="x")
    failed = [train_record(label, "lenet5", failure=failure) for label in ("dense", "random")]
    frame = frame_of(
        [*suite_records(["digits-cnn"], ["dense", "magnitude"], seeds=[0], measured=False), *failed]
    )
    rows = distinct_labels(frame)
    figure = draw(rows, views(rows)[0])
    assert [axis.get_title() for axis in figure.axes] == ["digits-cnn", "lenet5"]
    assert "2 of 2 failed" in figure.axes[1].get_xlabel()
    assert write_figures(frame_of(failed), tmp_path / "figures")
