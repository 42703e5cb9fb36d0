"""How DYffusion samples: a walk from x_0 to x_h through the leads of a schedule (arXiv 2306.01984, Algorithm 2).

The functions, the schedule and the loss are in `diffusion.dyffusion`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dydiff_jax.diffusion.dyffusion import Field, Forecast, Interpolator, Leads, Step
from dydiff_jax.types import Array

#: Leads in (0, h].
Wanted = Sequence[float | int] | np.ndarray


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
