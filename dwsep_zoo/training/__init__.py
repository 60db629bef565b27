"""Training: Lightning around a network, a data set and a recipe."""

from dwsep_zoo.training.check import check, resume_settings
from dwsep_zoo.training.run import run_plan, train

__all__ = ["check", "resume_settings", "run_plan", "train"]
