"""From the ``result.json`` of runs to a table, a figure and TensorBoard."""

from dwsep_zoo.report.compare import Comparison, compare
from dwsep_zoo.report.results import Problem, Run, load_results

__all__ = ["Comparison", "Problem", "Run", "compare", "load_results"]
