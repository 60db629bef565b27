"""How often PyTorch's own depthwise kernel did a job that the fast ways here do not cover."""

from __future__ import annotations

from collections import Counter

fallbacks: Counter[str] = Counter()
"""Calls in this process, by reason; ``clear()`` before what is to be counted.

What a CUDA graph replays is not counted, nor plain convolutions within compiled code, which are
those on a device that is neither a CPU nor a GPU of CUDA.
"""
