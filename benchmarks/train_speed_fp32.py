"""``train_speed.py`` in float32, the type of processors without fast bfloat16."""

from __future__ import annotations

from record import Record
from train_speed import CLAIM, main

if __name__ == "__main__":
    main("32-true", Record("train_speed_fp32", f"Training at CIFAR size in float32: {CLAIM}"))
