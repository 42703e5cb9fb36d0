"""DYffusion: learned interpolation in place of noise (Ruehling Cachay et al. 2023, arXiv 2306.01984).

Two functions take the place of noise and denoiser. An interpolator I makes, at random, the frame x_i between the last
known frame x_0 and x_h; a forecaster F estimates x_h from x_i. Diffusion steps are moments of physical time: step n of
N stands at the lead i_n in [0, h), and a sample walks from x_0 to x_h, its states being the forecast:

    x_h' = F(x, i_n),    x <- x + I(x_0, x_h', i_{n+1}) - I(x_0, x_h', i_n),    I(., ., 0) = x_0    (Algorithm 2).

It is no `GaussianProcess`: the state is one frame, not a window, and corruption is a network with randomness of its own
that is never inverted. Functions take the place of networks here; `systems.dyffusion` binds the networks.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

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


#: Leads in (0, h].
Wanted = Sequence[float | int] | np.ndarray

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
class WalkSampler:
    """How a sample walks through the schedule; free to change after training.

    With x_h' = F(x, i_n), the step from i = i_n to j = i_{n+1} is

        cold       x + I(x_0, x_h', j) - I(x_0, x_h', i)                             (Bansal et al., as released)
        naive      I(x_0, x_h', j)
        heun       a cold step, then the mean of its increment and of that with F(predicted, j), second order
        ancestral  mean_j + std_j (keep e + sqrt(1 - keep^2) noise),  e = (x - mean_i) / std_i,
                   keep^2 = SNR_i / SNR_j of I, with which it is the posterior of DDPM.

    Attributes:
      name: the step.
      grid: which steps are taken; all grids keep 0 and the integer leads: "all"; "integers"; "front", ``count`` more,
        evenly before lead 1; "thin", every ``count``-th of the others; "first", the first ``count`` of the others, or
        a share of them below 1; "power", (j / count)^power N for j < count.
      count: of the grid.
      power: of the grid "power".
      rounded: rounds the numbers of "front" down.
      draws: which draws of I are independent: those of every "call" (as released), of every "step", of every "block"
        of h frames, or of every "rollout".
      last: the last frame: x_h' ("forecast", as released) or x - I(x_0, x_h', i) + x_h' ("cold", as in the paper).
      refine: makes the frames before h anew, I(x_0, x_h, i) with the last x_h.

    Raises:
      ValueError: options that do not belong together.
    """

    name: Literal["cold", "naive", "heun", "ancestral"] = "cold"
    grid: Literal["all", "integers", "front", "thin", "first", "power"] = "all"
    count: int | float | None = None
    power: float = 1.0
    rounded: bool = False
    draws: Literal["call", "step", "block", "rollout"] = "call"
    last: Literal["forecast", "cold"] = "forecast"
    refine: bool = False

    def __post_init__(self) -> None:
        counted = self.grid in ("front", "thin", "first", "power")
        if counted != (self.count is not None):
            raise ValueError(
                f"count: expected {'a number' if counted else 'None'} with the grid {self.grid!r}, found {self.count}; "
                "set --config.system.sampler.count or another --config.system.sampler.grid"
            )
        if self.count is not None and (
            self.count <= 0 or (self.count % 1 and (self.grid != "first" or self.count > 1))
        ):
            raise ValueError(
                f"count: expected a whole number of 1 or more, or with 'first' a share below 1, found {self.count}"
            )
        if (self.power != 1.0 and self.grid != "power") or self.power <= 0:
            raise ValueError(
                f"power: expected a positive number, and 1 but for the grid 'power', found {self.power}"
            )
        if self.rounded and self.grid != "front":
            raise ValueError(
                f"rounded: expected False with the grid {self.grid!r}, found True; it belongs to "
                "--config.system.sampler.grid=front"
            )
        if self.name == "naive" and self.draws == "step":
            raise ValueError(
                "draws: expected 'call', 'block' or 'rollout' with 'naive', whose step has one draw already, found "
                "'step'; use --config.system.sampler.draws=call"
            )
        if self.name == "heun" and (self.draws == "call" or self.last != "cold"):
            raise ValueError(
                "name: 'heun' expected draws='step', 'block' or 'rollout' and last='cold', without which it is not of "
                f"second order, found draws={self.draws!r} and last={self.last!r}; use "
                "--config.system.sampler.draws=block --config.system.sampler.last=cold"
            )

    def check(self, leads: Leads, has_moments: bool) -> None:
        """Refuse what does not fit the schedule or the interpolator.

        Raises:
          ValueError: the grid has too few steps, or ``ancestral`` with an interpolator that has no deviation.
        """
        self.numbers(leads)
        if self.name == "ancestral" and not has_moments:
            raise ValueError(
                "name: 'ancestral' expected an interpolator with a deviation, found one without; use "
                "--config.system.interpolator.name=gaussian or another --config.system.sampler.name"
            )

    def calls(self, leads: Leads, wanted: Wanted | None = None) -> tuple[int, int]:
        """Evaluations of F and of I for a block; ``wanted`` is that of `sample`."""
        steps = len(self.numbers(leads))
        of_step = {"cold": 2, "naive": 1, "heun": 4, "ancestral": 2}[self.name]
        saved = {"cold": 1, "naive": 0, "heun": 2, "ancestral": 0}[self.name]
        again = len(_again(self, leads, _or_whole(wanted, leads)))
        forecasts = 2 * steps - 1 if self.name == "heun" else steps
        return forecasts, of_step * (steps - 1) - saved + (self.last == "cold") + again

    def draws_of_block(self, leads: Leads) -> int:
        """Draws of I in a block of h frames; those of the next block have higher numbers."""
        return _draws(self, leads).total

    def numbers(self, leads: Leads) -> np.ndarray:
        """The numbers of the steps that are taken, float64 [J], from 0 on.

        Raises:
          ValueError: the grid asks for more than the schedule has.
        """
        n, whole, count = leads.num_steps, leads.number(np.arange(1.0, leads.horizon)), self.count or 0
        every = np.arange(float(n))
        others = np.setdiff1d(every[1:], whole)
        if self.grid == "all":
            more = others
        elif self.grid == "integers":
            more = others[:0]
        elif self.grid == "front":
            more = np.linspace(0.0, whole[0], int(count) + 1, endpoint=False)
            if self.rounded:
                self._check_count(int(whole[0]), "before lead 1")
                more = np.floor(more)
        elif self.grid == "power":
            more = (np.arange(int(count)) / count) ** self.power * n
        else:
            count = int(count if count >= 1 else count * len(others))
            self._check_count(len(others), "between frames")
            more = others[::count] if self.grid == "thin" else others[:count]
        return np.unique(np.concatenate([[0.0], whole, more]))

    def _check_count(self, most: int, where: str) -> None:
        if self.count is not None and self.count > most:
            raise ValueError(
                f"count: expected at most the {most} steps that the schedule has {where}, found {self.count}; use a "
                "smaller --config.system.sampler.count or more steps in --config.system.leads"
            )


class Path(NamedTuple):
    """A sample of x_1 ... x_h.

    Attributes:
      frames: [b, j, *s] at the wanted leads.
      last: [b, *s], x_h.
      draws: how many draws of I there were from ``first_draw`` on; the next block begins with this one.
    """

    frames: Array
    last: Array
    draws: int


def sample(
    forecast: Forecast,
    interpolator: Interpolator,
    x0: Field,
    leads: Leads,
    sampler: WalkSampler,
    wanted: Wanted | None = None,
    first_draw: Array | int = 0,
    first_between: Array | int | None = None,
) -> Path:
    """Walk from x_0 to x_h.

    A frame between the steps is I(x_0, x_h, i) with the last x_h, as a refined frame is. It changes no draw of the walk
    and none of the whole leads.

    Args:
      forecast: F.
      interpolator: I.
      x0: the last known frame.
      leads: the schedule.
      sampler: the walk.
      wanted: leads of the frames that are returned, in (0, h], each once; 1 ... h if None.
      first_draw: number of the first draw of I.
      first_between: of the first draw of a frame between the whole leads, where "call" or "step" gives each its own;
        None: they follow on those of the walk.
    """
    h = leads.horizon
    numbers = sampler.numbers(leads)
    at = leads.lead(numbers)
    wanted = _or_whole(wanted, leads)
    place = {_key(lead): index for index, lead in enumerate(wanted)}
    again = _again(sampler, leads, wanted)
    draws, dtype = _draws(sampler, leads), x0.dtype
    total = draws.total
    if first_between is None:
        first_between = first_draw + total
        total += 0 if draws.shared else len([lead for lead in again if lead % 1])

    def move(x, step):
        xh = forecast(x, Step(step["number"], step["lead"]))
        begins, second = step["index"] == 0, step["draw"] + draws.second
        if sampler.name == "ancestral":
            return _ancestral(interpolator, x, x0, xh, step, begins)
        ahead = interpolator.draw(step["draw"], x0, xh, step["next"])
        if sampler.name == "naive":
            return ahead

        def here(xh):
            return jax.lax.cond(
                begins, lambda xh: x0, lambda xh: interpolator.draw(second, x0, xh, step["lead"]), xh
            )

        moved = ahead - here(xh)
        if sampler.name == "heun":
            xh = forecast(x + moved, Step(step["following"], step["next"]))
            moved = (moved + interpolator.draw(step["draw"], x0, xh, step["next"]) - here(xh)) / 2
        return x + moved

    def walk(carry, step):
        x, frames = carry
        x = move(x, step)
        return (x, jax.lax.dynamic_update_index_in_dim(frames, x, step["place"], 0)), None

    steps = {
        "index": jnp.arange(len(numbers) - 1),
        "number": jnp.asarray(numbers[:-1], dtype),
        "following": jnp.asarray(numbers[1:], dtype),
        "lead": jnp.asarray(at[:-1], dtype),
        "next": jnp.asarray(at[1:], dtype),
        "draw": first_draw + draws.steps,
        "place": jnp.asarray([place.get(_key(lead), len(place)) for lead in at[1:]]),
    }
    # of the states, the wanted ones are kept, each in its place, and the others in one more
    frames = jnp.zeros((len(place) + 1, *x0.shape), dtype)
    (x, frames), _ = jax.lax.scan(walk, (x0, frames), steps)
    end = Step(jnp.asarray(numbers[-1], dtype), jnp.asarray(at[-1], dtype))
    xh = forecast(x, end)
    if sampler.last == "cold":
        xh = x - interpolator.draw(first_draw + draws.last, x0, xh, end.lead) + xh
    if again:  # one after the other, so that their number does not matter to the compiler
        drawn = jax.lax.map(
            lambda each: interpolator.draw(each[0], x0, xh, each[1]),
            (draws.made_again(again, first_draw, first_between), jnp.asarray(again, dtype)),
        )
        frames = frames.at[np.array([place[_key(lead)] for lead in again])].set(drawn)
    frames = frames.at[place.get(_key(h), len(place))].set(xh)
    return Path(jnp.moveaxis(frames[:-1], 0, 1), xh, total)


def _or_whole(wanted: Wanted | None, leads: Leads) -> Wanted:
    return range(1, leads.horizon + 1) if wanted is None else wanted


def _key(lead: float | int | np.floating) -> float:
    """A lead without the rounding of a division, by which those of the steps are met."""
    return round(float(lead), 9)


def _again(sampler: WalkSampler, leads: Leads, wanted: Wanted) -> list[float | int | np.floating]:
    """The wanted leads whose frames are no states of the walk, or are made anew."""
    met = set(map(_key, leads.lead(sampler.numbers(leads))))
    return [lead for lead in wanted if lead < leads.horizon and (sampler.refine or _key(lead) not in met)]


def _ancestral(interpolator, x, x0, xh, step, begins):
    """The posterior of a bridge: what of x is noise is kept as far as the bridge keeps it, the rest is new."""
    i, j = step["lead"], step["next"]
    fresh = interpolator.noise(step["draw"], x0)
    mean, std = interpolator.moments(x0, xh, i)
    square = interpolator.snr_ratio(i, j)
    noise = (x - mean) / jnp.where(std > 0, std, 1)
    noise = jnp.where(begins, fresh, jnp.sqrt(square) * noise + jnp.sqrt(1 - square) * fresh)
    mean, std = interpolator.moments(x0, xh, j)
    return mean + std * noise


class _Draws(NamedTuple):
    """Numbers of the draws of I within a block.

    Attributes:
      steps: [J - 1], of the first call of each step but the last.
      second: what the second call of a step adds.
      last: of the last step.
      refined: of the frame at lead 1, where the frames at whole leads are made anew; those after it follow.
      total: by which the numbers of the next block are higher.
      shared: whether all frames have one draw.
    """

    steps: np.ndarray
    second: int
    last: int
    refined: int
    total: int
    shared: bool = False

    def made_again(
        self, again: Sequence[float | int | np.floating], first: Array | int, first_between: Array | int
    ) -> Int[Array, "n"]:
        """The numbers of the frames that I makes after the walk, those of the whole leads whatever else is wanted."""
        if self.shared:
            return jnp.zeros(len(again), int) + first
        between = np.array([lead % 1 > 0 for lead in again])
        offset = np.where(between, np.cumsum(between) - 1, self.refined - 1 + np.array(again, int))
        return jnp.where(between, first_between, first) + offset


def _draws(sampler: WalkSampler, leads: Leads) -> _Draws:
    number, refined = np.arange(len(sampler.numbers(leads))), leads.horizon - 1 if sampler.refine else 0
    if sampler.draws in ("block", "rollout"):
        return _Draws(0 * number[:-1], 0, 0, 0, int(sampler.draws == "block"), shared=True)
    second = int(sampler.draws == "call" and sampler.name == "cold")
    if second:
        number = np.maximum(2 * number - 1, 0)
    end = int(number[-1]) + (sampler.last == "cold" or sampler.draws == "step")
    return _Draws(number[:-1], second, int(number[-1]), end, end + refined)


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
