"""The public names, and what importing them costs."""

import subprocess
import sys

import pytest

import dwsep_zoo


def test_every_public_name_is_there():
    for name in dwsep_zoo.__all__:
        assert getattr(dwsep_zoo, name).__name__ == name
    assert set(dwsep_zoo.__all__) <= set(dir(dwsep_zoo))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dwsep_zoo.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import dwsep_zoo", {"torch"}),
        ("import dwsep_zoo.cli", {"torch"}),
        ("import dwsep_zoo; dwsep_zoo.create_model; dwsep_zoo.count", {"lightning", "hydra"}),
        ("import dwsep_zoo; dwsep_zoo.create_model; dwsep_zoo.load", {"timm"}),
        ("import dwsep_zoo.config", {"torch"}),
    ],
)
def test_heavy_libraries_are_imported_when_they_are_needed(code, absent):
    code = f"{code}\nimport sys\nassert not {absent!r} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
