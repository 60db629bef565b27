"""Changes that mkdocs makes to the pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
SHOWN = (".html", ".png")
TRAINED = RESULTS.parent.parent / "dwsep_zoo" / "weights" / "trained"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reports of the records and the cards of the weights, which lie outside ``docs/``."""
    for path in sorted(RESULTS.glob("*/*")):
        if path.suffix in SHOWN:
            uri = f"records/{path.relative_to(RESULTS).as_posix()}"
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    for path in sorted(TRAINED.glob("*/*/README.md")):
        uri = f"cards/{path.relative_to(TRAINED).as_posix()}"
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Point links to these, which are right in the repository, at their copies."""
    markdown = markdown.replace("](../dwsep_zoo/weights/trained/", "](cards/")
    return markdown.replace("](../benchmarks/results/", "](records/")


def on_page_content(html: str, **context: Any) -> str:
    """Show the docstrings' Sphinx roles, which mkdocstrings leaves as they are, as plain code."""
    return re.sub(r":(?:class|func|meth):(?=<code>)", "", html)
