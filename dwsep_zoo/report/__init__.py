"""Comparison of runs: statistics, tables, figures and TensorBoard."""

from dwsep_zoo.report.compare import compare
from dwsep_zoo.report.comparison import Comparison
from dwsep_zoo.report.results import Problem, Run, load_results
from dwsep_zoo.report.table import Options

__all__ = ["Comparison", "Options", "Problem", "Run", "compare", "load_results"]
