"""Which rows are the same question asked with several seeds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

QUESTION = ["dataset", "network", "label"]
"""What a row of a table is about, next to its strength, once labels are distinct."""

WORKLOAD = ["dataset", "dataset_fingerprint", "network", "protocol_version", "recipe"]
"""What the dense network has to share with a row, for the two to be compared."""

_VARIANT = ["method", "dataset_fingerprint", "protocol_version", "recipe", "config"]

_OF_A_POINT = {"kept", "layer_actions", "ratios"}
"""Settings of a control (`bench controls`): the shape of a point, and so another one for every seed of it."""


def distinct_labels(frame: pandas.DataFrame) -> pandas.DataFrame:
    """A copy of a point frame in which a label of a network names one method, config, recipe, data and
    protocol.

    Where one label stands for several, what tells them apart is appended (`magnitude [epochs=20]`), and nothing to the
    one that has none of these settings: numbers of two protocols or budgets never share a row. The controls of one
    point of each seed do.
    """
    frame = frame.copy()
    for name in {*QUESTION, *_VARIANT} & set(frame.columns):
        frame[name] = frame[name].astype("object")
    for _, group in frame.groupby([*QUESTION, *_VARIANT[:-1]], sort=True):
        _make_one_question_of_controls(frame, group)
    for _, group in frame.groupby(QUESTION, sort=True):
        variants = group[_VARIANT].drop_duplicates()
        if len(variants) == 1:
            continue
        settings = [_settings(row) for row in variants.to_dict("records")]
        names = sorted({name for one in settings for name in one})
        differing = [name for name in names if len({json.dumps(one.get(name)) for one in settings}) > 1]
        for one, row in zip(settings, variants.itertuples(index=False), strict=True):
            same = (group[_VARIANT] == list(row)).all(axis=1)
            told = ", ".join(f"{name}={one[name]}" for name in differing if name in one)
            frame.loc[group.index[same], "label"] = group["label"].iloc[0] + (f" [{told}]" if told else "")
    return frame.sort_values([*QUESTION, "strength", "seed"], kind="stable", ignore_index=True)


def _make_one_question_of_controls(frame: pandas.DataFrame, group: pandas.DataFrame) -> None:
    """In the rows of `frame` of a label, where each is the control of a point of another seed: without what is this
    point's, and at their mean strength."""
    configs = [json.loads(config) for config in group["config"]]
    shapes = [{key: config[key] for key in _OF_A_POINT & config.keys()} for config in configs]
    if group["seed"].duplicated().any() or not all(any(shape.values()) for shape in shapes):
        return
    shared = [{key: value for key, value in config.items() if key not in _OF_A_POINT} for config in configs]
    frame.loc[group.index, "config"] = [json.dumps(config, sort_keys=True) for config in shared]
    frame.loc[group.index, "strength"] = group["strength"].mean()


def _settings(row: dict[Any, Any]) -> dict[str, Any]:
    """Every setting of a variant under one flat name; of the method's, one that is taken is told as `config.NAME`."""
    flat = {
        "method": row["method"],
        "data": row["dataset_fingerprint"],
        "protocol": int(row["protocol_version"]),
        **json.loads(row["recipe"]),
    }
    config = json.loads(row["config"])
    return flat | {f"config.{name}" if name in flat else name: value for name, value in config.items()}
