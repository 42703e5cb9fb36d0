"""DYffusion: learned interpolation in place of noise (Ruehling Cachay et al. 2023, arXiv 2306.01984).

Two functions take the place of noise and denoiser. An interpolator I makes, at random, the frame x_i between the last
known frame x_0 and x_h; a forecaster F estimates x_h from x_i. Diffusion steps are moments of physical time: step n of
N stands at the lead i_n in [0, h), and a sample walks from x_0 to x_h, its states being the forecast:

    x_h' = F(x, i_n),    x <- x + I(x_0, x_h', i_{n+1}) - I(x_0, x_h', i_n),    I(., ., 0) = x_0    (Algorithm 2).

It is no `GaussianProcess`: the state is one frame, not a window, and corruption is a network with randomness of its own
that is never inverted. Functions take the place of networks here; `systems.dyffusion` binds the networks. This is the
schedule and the loss; how a sample walks is in `diffusion.walk`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from dydiff_jax.diffusion.losses import mean_error
from dydiff_jax.types import Array, Keys, over_frames

#: One frame of each example.
Field = Float[Array, "b *s"]


class Step(NamedTuple):
    """Where a sample is.

    Attributes:
      number: n in [0, N), which may be fractional; a scalar or [b].
      lead: i_n in [0, h), in frames.
    """

    number: Array | float | int
    lead: Array | float | int


#: Maps a state and its step to an estimate of x_h.
Forecast = Callable[[Field, Step], Field]


@runtime_checkable
class Interpolator(Protocol):
    """I, bound to a key for each example.

    Attributes:
      has_moments: whether it is mean + deviation * white noise, which `ancestral` needs.
    """

    @property
    def has_moments(self) -> bool: ...

    def draw(self, draw: Array | int, x0: Field, xh: Field, lead: Array | float) -> Field:
        """x_i at random; the number ``draw`` decides all of its randomness."""
        ...

    def moments(self, x0: Field, xh: Field, lead: Array | float) -> tuple[Field, Field]:
        """Mean and standard deviation of x_i."""
        ...

    def noise(self, draw: Array | int, like: Field) -> Field:
        """The white noise of a draw."""
        ...

    def snr_ratio(self, lead: Array | float, later: Array | float) -> Array | float:
        """SNR_i / SNR_j of two leads i < j, where SNR = (slope of the mean in x_h / deviation)^2."""
        ...


def brownian_snr_ratio(lead: Array | float, later: Array | float, horizon: int) -> Array | float:
    """i (h - j) / (j (h - i)), that of a Brownian bridge, for an interpolator that does not know its own."""
    return lead * (horizon - later) / (later * (horizon - lead))


@dataclasses.dataclass(frozen=True)
class Leads:
    """The schedule: the lead i_n of every diffusion step n = 0 ... N - 1.

    | kind                  | N                        | i_n                                                   |
    |-----------------------|--------------------------|-------------------------------------------------------|
    | before_t1_only        | h + extra                | n / (extra + 1) up to lead 1, then one frame a step   |
    | linear                | h + factor (h - 1)       | n / (factor + 1); without before_t1 (n + factor) /    |
    |                       | (without before_t1 h - 2)| (factor + 1), so that i_0 > 0 though x is x_0         |
    | before_t1_then_linear | h + extra + factor (h-2) | the first up to lead 1, then 1 / (factor + 1) a step  |
    | uniform               | steps                    | n h / N                                               |

    All but uniform end at h - 1, so that the last step spans a whole frame. The first two are those of the release.

    Attributes:
      horizon: h, forecast frames of a block.
      kind: of the schedule.
      extra: steps strictly between leads 0 and 1.
      factor: steps strictly between two later leads.
      before_t1: whether ``linear`` divides the first frame too.
      steps: N of ``uniform``.

    Raises:
      ValueError: h is below 2, or an option does not belong to the kind.
    """

    horizon: int
    kind: Literal["before_t1_only", "linear", "before_t1_then_linear", "uniform"] = "before_t1_only"
    extra: int = 0
    factor: int = 0
    before_t1: bool = True
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.horizon < 2:
            raise ValueError(
                f"horizon: expected 2 forecast frames or more to interpolate between, found {self.horizon}; use "
                "--config.window.num_forecast=2 or more"
            )
        owners = {"extra": ("before_t1_only", "before_t1_then_linear"), "factor": ("linear", "before_t1_then_linear"),
                  "before_t1": ("linear",), "steps": ("uniform",)}  # fmt: skip
        unset = {field.name: field.default for field in dataclasses.fields(self)}
        for name, kinds in owners.items():
            value = getattr(self, name)
            if value != unset[name] and self.kind not in kinds:
                raise ValueError(
                    f"{name}: expected {unset[name]} with the schedule {self.kind!r}, found {value}; it belongs to "
                    f"--config.system.leads.kind={' or '.join(kinds)}"
                )
        for name in ("extra", "factor"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more steps, found {getattr(self, name)}")
        if self.kind == "uniform" and (self.steps is None or self.steps < 2):
            raise ValueError(
                f"steps: expected 2 or more with the schedule 'uniform', found {self.steps}; set "
                "--config.system.leads.steps"
            )

    @property
    def num_steps(self) -> int:
        """N."""
        h = self.horizon
        if self.kind == "uniform":
            assert self.steps is not None  # checked above
            return self.steps
        return h + self.extra + self.factor * (h - 1 if self.kind == "linear" and self.before_t1 else h - 2)

    def _knots(self) -> tuple[Sequence[float | int], Sequence[float | int]]:
        """Numbers and leads between which the schedule is linear."""
        h = self.horizon
        if self.kind == "uniform":
            return [0, self.num_steps], [0, h]
        if self.kind == "linear":
            first = 0.0 if self.before_t1 else self.factor / (self.factor + 1)
            return [0, (h - first) * (self.factor + 1)], [first, h]
        first = self.extra + 1
        return [0, first, first + (h - 1) * (self.factor + 1)], [0, 1, h]

    def lead(self, number: np.ndarray | float | int) -> np.ndarray:
        """i_n, float64, of any real number in [0, N)."""
        return _whole(np.interp(number, *self._knots()))

    def number(self, lead: np.ndarray | float | int) -> np.ndarray:
        """The number of the step at a lead, float64."""
        numbers, leads = self._knots()
        return _whole(np.interp(lead, leads, numbers))


def _whole(x: np.ndarray | float) -> np.ndarray:
    """x, where rounding moved a whole number put back."""
    return np.asarray(np.where(np.abs(x - np.round(x)) < 1e-9, np.round(x), x))


@dataclasses.dataclass(frozen=True)
class DYffusion:
    """How the forecaster is trained, and what it sees.

    Attributes:
      leads: the schedule.
      loss: mean absolute ("l1", as released) or squared error ("mse").
      weights: of the error of x_h' and of that after the look-ahead step; without the second, 0, it is not computed.
      conditioning: what F sees of x_0 beside the state: nothing, "data", or "data_noise", f x_0 + (1 - f) noise with
        f = n / (N - 1).
      time: what F sees of its step: the "lead" i_n, the "step" n, or n / N ("normalized").

    Raises:
      ValueError: a weight is negative, or the first is 0.
    """

    leads: Leads
    loss: Literal["l1", "mse"] = "l1"
    weights: tuple[float, float] = (0.5, 0.5)
    conditioning: Literal["none", "data", "data_noise"] = "none"
    time: Literal["lead", "step", "normalized"] = "lead"

    def __post_init__(self) -> None:
        if not self.weights[0] > 0 or not self.weights[1] >= 0:
            raise ValueError(f"weights: expected one above 0 and one of 0 or more, found {self.weights}")

    def time_of(self, step: Step) -> Array | float | int:
        """What F sees of a step, from 0 to `longest`."""
        if self.time == "lead":
            return step.lead
        return step.number / self.leads.num_steps if self.time == "normalized" else step.number

    @property
    def longest(self) -> float:
        """The time that no step reaches."""
        return float({"lead": self.leads.horizon, "step": self.leads.num_steps, "normalized": 1}[self.time])


def condition(
    kind: str, x0: Field, number: Array | float | int, num_steps: int, noise: Field | None = None
) -> Field | None:
    """What F sees of x_0 at step n: None, x_0, or f x_0 + (1 - f) noise with f = n / (N - 1)."""
    if kind == "none":
        return None
    if kind == "data":
        return x0
    assert noise is not None
    share = jnp.broadcast_to(jnp.asarray(number, x0.dtype) / (num_steps - 1), x0.shape[:1])
    kept = over_frames(share[:, None], x0[:, None])[:, 0]
    return kept * x0 + (1 - kept) * noise


def dyffusion_loss(
    keys: Keys,
    options: DYffusion,
    forecast: Forecast,
    interpolator: Interpolator,
    x0: Field,
    xh: Field,
    observed: Bool[Array, "..."] | None = None,
    number: Array | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss of F, with a step of look-ahead whose gradient passes through I (the release's p_losses).

        n ~ U{0 ... N - 1},   x_n = I(x_0, x_h, i_n), or x_0 at n = 0,   x_h' = F(x_n, i_n),
        loss = w_0 |x_h' - x_h| + w_1 |F(I(x_0, x_h', i_{n+1}), i_{n+1}) - x_h|,

    the second over the examples with n <= N - 2 and divided by their number.

    Args:
      keys: a key for each example, for n.
      options: the loss.
      forecast: F.
      interpolator: I; its draw 0 makes x_n, its draw 1 the look-ahead.
      x0: the last known frame.
      xh: the frame h leads later.
      observed: which points of x_h count, broadcastable to it; None: all.
      number: n of each example; None: drawn.

    Returns:
      The loss, and loss_forecast and loss_look_ahead, the two errors.
    """
    leads, count = options.leads, options.leads.num_steps
    table = jnp.asarray(leads.lead(np.arange(count)), x0.dtype)
    if number is None:
        number = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(keys)

    def at(number):
        return Step(number.astype(x0.dtype), table[number])

    def mean(prediction, counted):
        error = (prediction - xh)[:, None]
        error = jnp.abs(error) if options.loss == "l1" else error**2
        mask = over_frames(counted[:, None], error)
        mask = mask if observed is None else mask & observed[:, None]
        return mean_error(error, jnp.ones(error.shape[:2], bool), mask)[0]

    begins = over_frames((number == 0)[:, None], x0[:, None])[:, 0]
    step = at(number)
    x = jnp.where(begins, x0, interpolator.draw(0, x0, xh, jnp.where(number == 0, 1.0, step.lead)))
    estimate = forecast(x, step)  # x_h'
    error = mean(estimate, number >= 0)
    if not options.weights[1]:
        return options.weights[0] * error, {"loss_forecast": error}
    ahead = at(jnp.minimum(number + 1, count - 1))
    later = mean(forecast(interpolator.draw(1, x0, estimate, ahead.lead), ahead), number <= count - 2)
    first, second = options.weights
    return first * error + second * later, {"loss_forecast": error, "loss_look_ahead": later}
