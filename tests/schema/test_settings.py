"""Settings: every field refuses what it is not, in one line that names the key and the value."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from dwsep_zoo import UserError
from dwsep_zoo.config import compose_settings
from dwsep_zoo.schema.parse import Group, nested_model
from dwsep_zoo.schema.settings import Named, Settings, parse_settings


def walk(kind: type[Group], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted names and fields, groups and their keys; options of one model or conv are open."""
    for name, field in kind.model_fields.items():
        if name != "options":
            yield f"{path}{name}", field
            if inner := nested_model(field.annotation):
                yield from walk(inner, f"{path}{name}.")


FIELDS = dict(walk(Settings))
GROUPS = {path: kind for path, field in FIELDS.items() if (kind := nested_model(field.annotation))}
LEAVES = {path: field for path, field in FIELDS.items() if path not in GROUPS}
MISSING = object()
VALUES = (True, -1, 0, 0.5, 1e9, "no such", "", [], [0.5], [1, 1], [["a"]], {"a": 1}, None)


@cache
def composed() -> dict[str, Any]:
    return compose_settings(["hparams_search=optuna", "paths.output_dir=unused"]).plain()


def changed(path: str, value: object, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """The settings with another value, or without one."""
    values = copy.deepcopy(composed() if values is None else values)
    *groups, name = path.split(".")
    inner = values
    for group in groups:
        inner = inner[group]
    inner[name] = value
    if value is MISSING:
        del inner[name]
    return values


def refusal(values: object) -> str:
    with pytest.raises(UserError) as error:
        parse_settings(values)
    assert "\n" not in str(error.value)
    return str(error.value)


def accepts(field: FieldInfo, value: object) -> bool:
    """Pydantic's own word on a value, of this field alone."""
    try:
        adapter = TypeAdapter(field.rebuild_annotation(), config={"allow_inf_nan": False})
        adapter.validate_python(tuple(value) if isinstance(value, list) else value, strict=True)
    except ValidationError:
        return False
    return True


def bounds(field: FieldInfo) -> list[float]:
    """The nearest numbers outside the field's bounds, if it has any."""
    found = []
    parts = [field.rebuild_annotation()]
    for part in parts:
        parts.extend(getattr(part, "__args__", ()))
        for limit in getattr(part, "__metadata__", ()):
            for one in getattr(limit, "metadata", [limit]):
                found += [getattr(one, "ge", None), getattr(one, "le", None)]
                exclusive = [getattr(one, "gt", None), getattr(one, "lt", None)]
                found += [end for end in exclusive if end is not None]
    inclusive = [end for end in found if end is not None]
    return [end + step for end in inclusive for step in (-1, 0, 1)]


@pytest.mark.parametrize("path", LEAVES)
def test_a_wrong_value_names_the_key_and_itself(path):
    field = LEAVES[path]
    wrong = [value for value in (*VALUES, *bounds(field)) if not accepts(field, value)]
    assert wrong
    for value in wrong:
        said = refusal(changed(path, value))
        assert path in said
        assert (repr(value) if value != "" else "''") in said


@pytest.mark.parametrize("path", LEAVES)
def test_nothing_is_infinite_or_not_a_number(path):
    for value in (math.nan, math.inf, -math.inf):
        for given in (value, [value], [0.5, value]):
            said = refusal(changed(path, given))
            assert path in said
            assert re.search(r"\b(nan|inf)\b", said)


@pytest.mark.parametrize("path", GROUPS)
@pytest.mark.parametrize("value", [3, "x", [1], None])
def test_a_group_is_a_group(path, value):
    if value is None and path == "hparams_search":
        return
    said = refusal(changed(path, value))
    assert said == f"{path} must be a group of keys; got {value!r}"


@pytest.mark.parametrize("path", ["", *(p for p, k in GROUPS.items() if not issubclass(k, Named))])
def test_an_unknown_key_names_the_nearest(path):
    kind = GROUPS.get(path, Settings)
    for name in kind.model_fields:
        typed = f"{name}z"
        said = refusal(changed(f"{path}.{typed}".lstrip("."), 1))
        assert re.search(f"unknown key (of {path} )?'{typed}'; did you mean '", said)
        assert name in said


@pytest.mark.parametrize("path", FIELDS)
def test_every_key_is_required_and_described(path):
    assert FIELDS[path].description
    assert refusal(changed(path, MISSING)) == f"{path} is missing"


@pytest.mark.parametrize("values", [None, 3, "x", [], [1], {}, {"model": {}}, {1: 2}, {"": None}])
def test_what_is_no_configuration(values):
    refusal(values)


def test_settings_are_final_and_replaced_by_checked_ones():
    recipe = parse_settings(composed()).recipe
    with pytest.raises(ValidationError):
        recipe.lr = 3.0
    assert recipe.replace(lr=3.0).lr == 3.0
    with pytest.raises(UserError, match=r"lr must be greater than 0\.0; got -1\.0"):
        recipe.replace(lr=-1.0)
    with pytest.raises(UserError, match="unknown key 'lrr'; did you mean 'lr'"):
        recipe.replace(lrr=1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data.mean": [0.5]}, "data.mean and data.std are set together or not at all"),
        ({"data.cache": True, "data.in_memory": True}, "data.cache and data.in_memory exclude"),
        ({"data.cache_size": 64}, "data.cache_size=64 has no effect without data.cache"),
        ({"match": "macs", "model.pretrained": True}, "which pretrained weights fix"),
        ({"trainer.strategy": "ddp"}, "hparams_search cannot run with trainer=ddp"),
        ({"recipe.weight_decay": 0.0}, "around recipe.weight_decay, which is 0"),
        ({"hparams_search.lr": [1.0, 0.1]}, "hparams_search.lr must be [lowest, highest]"),
        ({"data.augment.scale": [0.9, 0.1]}, "data.augment.scale must be [lowest, highest]"),
        (
            {"data.url": "https://me:secret@x.org"},
            "data.url must be an address without user name",
        ),
        ({"logger.uri": "https://me@x.org"}, "logger.uri must be an address without user name"),
        ({"logger.uri": "http://[x"}, "logger.uri must be an address"),
        ({"data.subset.num_classes": 2, "data.subset.classes": ["a", "b"]}, "exclude each other"),
    ],
)
def test_keys_that_contradict_each_other(change, said):
    values = composed()
    for path, value in change.items():
        values = changed(path, value, values)
    assert said in refusal(values)
