"""Figures and animations, drawn from results files alone.

Times count from the last context frame, in the unit that the results file names. The first row of a field is
at the bottom. A value that is missing is NaN in the results files, and blank.
"""

from dydiff_jax.evaluation.plots.comparison import compare_all
from dydiff_jax.evaluation.plots.draw import FIGURES, animate, chosen, plot_all

__all__ = ["FIGURES", "animate", "chosen", "compare_all", "plot_all"]
