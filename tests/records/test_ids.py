import math

import pytest

from bench.records import ids
from bench.records.schema import Workload

BASE = {
    "dataset": "digits",
    "dataset_fingerprint": "f1",
    "network": "digits-cnn",
    "recipe": {"epochs": 20, "optimiser": {"name": "sgd", "momentum": 0.9}},
    "recipe_defaults": {"epochs": 10, "optimiser": {"name": "sgd", "momentum": 0.9}},
    "method": "magnitude",
    "config": {"norm": 2, "schedule": "gradual"},
    "config_defaults": {"norm": 1, "schedule": "gradual"},
    "strength": None,
    "seed": 3,
}


def test_a_new_setting_with_a_default_keeps_every_old_id() -> None:
    new = BASE | {
        "config": BASE["config"] | {"warm_up": 0.0},
        "config_defaults": BASE["config_defaults"] | {"warm_up": 0.0},
        "recipe": BASE["recipe"] | {"optimiser": BASE["recipe"]["optimiser"] | {"nesterov": False}},
        "recipe_defaults": BASE["recipe_defaults"]
        | {"optimiser": BASE["recipe_defaults"]["optimiser"] | {"nesterov": False}},
    }
    assert ids.train_id(**new) == ids.train_id(**BASE)
    usual = Workload(dataset="d", dataset_fingerprint="f", network="n", recipe={}).beside_recipe()
    assert ids.train_id(**BASE, beside_recipe=usual) == ids.train_id(**BASE)


def test_the_id_is_the_same_on_every_machine() -> None:
    """Held as a literal: it changes only with the protocol version, and then on purpose."""
    assert ids.train_id(**BASE) == "ce5da6d49327c79b-s3"


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "mnist"},
        {"dataset_fingerprint": "f2"},
        {"network": "lenet5"},
        {"recipe": BASE["recipe"] | {"epochs": 21}},
        {"recipe": BASE["recipe"] | {"optimiser": {"name": "sgd", "momentum": 0.8}}},
        {"method": "random"},
        {"config": BASE["config"] | {"norm": 3}},
        {"strength": 0.0},
        {"beside_recipe": {"streams": True}},
        {"beside_recipe": {"round_to": 8}},
        {"beside_recipe": {"start": "0123"}},
    ],
)
def test_whatever_the_training_depends_on_is_in_the_hash(change: dict) -> None:
    assert ids.train_id(**(BASE | change)).split("-s")[0] != ids.train_id(**BASE).split("-s")[0]


def test_the_seed_is_apart_from_the_hash() -> None:
    first, second = ids.train_id(**BASE), ids.train_id(**(BASE | {"seed": 11}))
    assert first.removesuffix("-s3") == second.removesuffix("-s11")
    assert ids.point_id(first, 0.5).removesuffix("-s3") == ids.point_id(second, 0.5).removesuffix("-s11")


def test_the_protocol_version_is_in_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ids.train_id(**BASE)
    monkeypatch.setattr(ids, "PROTOCOL_VERSION", 999)
    assert ids.train_id(**BASE) != old


def test_points_and_measures() -> None:
    train = ids.train_id(**BASE)
    assert ids.point_id(train, 1) == ids.point_id(train, 1.0) != ids.point_id(train, 0.5)
    assert ids.point_id(train, -0.0) == ids.point_id(train, 0.0)
    point = ids.point_id(train, 0.5)
    all_ids = {
        point,
        ids.measure_id(point, "cpu", {"calls": 100}),
        ids.measure_id(point, "cpu", {"calls": 200}),
        ids.measure_id(point, "gpu", {"calls": 100}),
    }
    assert len(all_ids) == 4
    assert all(id.endswith("-s3") for id in all_ids)
    with pytest.raises(ValueError, match="no id"):
        ids.point_id("nonsense", 0.5)


def test_digest_does_not_see_the_order_of_keys_but_sees_values() -> None:
    assert ids.digest({"a": 1, "b": (1.5, None)}) == ids.digest({"b": [1.5, None], "a": 1})
    assert ids.digest({"a": 0.1 + 0.2}) != ids.digest({"a": 0.3})
    assert ids.digest({"a": True}) != ids.digest({"a": 1})


def test_digest_refuses_what_has_no_canonical_form() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            ids.digest({"a": bad})
    with pytest.raises(TypeError, match="keys"):
        ids.digest({"a": {1: 2}})
    with pytest.raises(TypeError):
        ids.digest({"a": {1, 2}})


def test_a_mapping_emptied_of_its_default_is_a_change() -> None:
    assert ids.train_id(**(BASE | {"recipe": {"epochs": 20, "optimiser": {}}})) != ids.train_id(**BASE)
