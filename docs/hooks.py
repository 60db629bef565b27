"""What mkdocs does to the pages."""

from __future__ import annotations

import re
from typing import Any


def on_page_content(html: str, **context: Any) -> str:
    """The docstrings' Sphinx roles, which mkdocstrings shows as they are, become plain code."""
    return re.sub(r":(?:class|func|meth):(?=<code>)", "", html)
