"""Training: Lightning around a network, a data set and a recipe."""

from dwsep_zoo.training.run import train

__all__ = ["train"]
