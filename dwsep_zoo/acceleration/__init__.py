"""This project's kernels for any network: one pass over its graph."""

from dwsep_zoo.acceleration.plans import (
    accelerate,
    explain,
    hooks_of,
    planned_forward,
    summary,
    unchanged,
)

__all__ = ["accelerate", "explain", "hooks_of", "planned_forward", "summary", "unchanged"]
