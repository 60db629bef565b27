"""Training: Lightning around a network, a data set and a recipe."""

from dwsep_zoo.training.check import check, continued, resume_settings
from dwsep_zoo.training.run import run_plan, train

__all__ = ["check", "continued", "resume_settings", "run_plan", "train"]
