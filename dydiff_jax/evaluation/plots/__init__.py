"""Pictures and films, drawn from results files alone.

Times count from the last context frame, in the unit that the results file names. The first row of a field is
at the bottom.
"""

from dydiff_jax.evaluation.plots.comparison import compare_all
from dydiff_jax.evaluation.plots.draw import film, plot_all

__all__ = ["compare_all", "film", "plot_all"]
