"""A sweep: its runs, made by one process or several, measured together, and compared."""

from dwsep_zoo.sweep.pool import check_jobs, work_together
from dwsep_zoo.sweep.runs import AGAIN, OPEN, Sweep, check_folder, keep_for_hydra, plan_of

__all__ = [
    "AGAIN",
    "OPEN",
    "Sweep",
    "check_folder",
    "check_jobs",
    "keep_for_hydra",
    "plan_of",
    "work_together",
]
