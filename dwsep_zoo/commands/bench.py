"""``dwsep bench``: ``dwsep profile`` with every runtime, for one image and for 32."""

from __future__ import annotations

from dwsep_zoo.commands.profile import run as profile


def run(arguments: list[str]) -> None:
    profile(["runtimes=all", "batch_size=1,32", *arguments])
