"""The notebook of the documentation: its cells run, one after the other, in an empty folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "notebook.ipynb"
SMALL = [
    *("model=mobilenet_v1_shallow", "model.width_mult=0.125", "trainer.max_epochs=1"),
    *("profile.patience=0", "profile.roofline=false", "trainer=cpu"),
]


def code() -> list[tuple[str, dict[str, Any]]]:
    """Source and metadata of the cells of code."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    return [
        ("".join(cell["source"]), cell["metadata"]) for cell in cells if cell["cell_type"] == "code"
    ]


def test_the_cells_are_kept_as_they_were_written() -> None:
    """Nothing of somebody's session is in them."""
    assert len(code()) > 5
    for source, _ in code():
        compile(source, NOTEBOOK.name, "exec")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_cells_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_logging: None, capsys: Any
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, (source, metadata) in enumerate(code()):
        exec(compile(source, f"cell {number}", "exec"), names)
        if "parameters" in metadata.get("tags", ()):  # as papermill replaces them
            assert "settings" in names
            names["settings"] = SMALL
    assert {path.parent.name for path in Path("runs").glob("*/result.json")} == {
        *("standard", "depthwise_separable", "onnx", "int8")
    }
    rows = [row for table in names["report"].tables for row in table.rows]
    assert len(rows) == 4
    assert names["quantised"].file.size_bytes < names["exported"].size_bytes
    assert "int8: " in capsys.readouterr().out
