"""FLOPs of a function, counted in its jaxpr, before compilation."""

import math
from typing import Any

import jax
from jax.extend import core

from dydiff_jax.cost_model.hlo import window_pairs


def model_flops(function: Any, *arguments: Any) -> int:
    """FLOPs of the matrix products and convolutions of one call, counted as in `hlo.flops`.

    Args:
      function: the function; it is traced, not run.
      *arguments: arrays, or shapes with dtypes.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(_count(inner) for inner in core.jaxprs_in_params(equation.params))
    return total


def _convolution(equation: core.JaxprEqn) -> int:
    left, kernel = (operand.aval.shape for operand in equation.invars)
    out = equation.outvars[0].aval.shape
    params, numbers = equation.params, equation.params["dimension_numbers"]
    pairs = 1
    for axis in range(len(out) - 2):
        pairs *= window_pairs(
            left[numbers.lhs_spec[axis + 2]],
            kernel[numbers.rhs_spec[axis + 2]],
            out[numbers.out_spec[axis + 2]],
            low=params["padding"][axis][0],
            stride=params["window_strides"][axis],
            holes=(params["lhs_dilation"][axis], params["rhs_dilation"][axis]),
        )
    batch, features = (out[axis] for axis in numbers.out_spec[:2])
    return 2 * batch * features * kernel[numbers.rhs_spec[1]] * pairs
