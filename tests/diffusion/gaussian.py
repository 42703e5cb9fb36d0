"""The exact law of forecasts of a stationary AR(1) process, its exact denoiser, and the law that a sampler draws.

Frames are one pixel. Everything is linear and Gaussian, so that a sampler's law is found by feeding it basis
vectors in float64, without Monte Carlo.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.diffusion.sampler import State, integrate, update


def chain_matrix(gamma, size):
    """D of the mixing recursion for one gamma: D_ij = a^(i-j) b, first column a^i; a^2 = 1 - gamma, b^2 = gamma."""
    lag = jnp.arange(size)[:, None] - jnp.arange(size)[None, :]
    decay = jnp.where(lag >= 0, jnp.sqrt(1 - gamma) ** jnp.maximum(lag, 0), 0.0)
    return decay * jnp.where(jnp.arange(size) == 0, 1.0, jnp.sqrt(gamma))


@dataclasses.dataclass(frozen=True)
class AutoRegression:
    """x^{s+1} = a x^s + sqrt(1 - a^2) xi, p known and k unknown frames: x | c ~ N(lift c, covariance)."""

    p: int
    k: int
    a: float = 0.9

    def conditional(self):
        lag = np.abs(np.subtract.outer(np.arange(self.p + self.k), np.arange(self.p + self.k)))
        joint = self.a**lag
        cc, fc, ff = joint[: self.p, : self.p], joint[self.p :, : self.p], joint[self.p :, self.p :]
        regression = fc @ np.linalg.inv(cc)
        lift = np.concatenate([np.eye(self.p), regression])
        covariance = np.zeros_like(joint)
        covariance[self.p :, self.p :] = ff - regression @ fc.T
        return lift, covariance


def corruption_matrices(process, gamma):
    """(D_y, D_n) over the whole window: z = alpha D_y x + sigma D_n eps on the corrupted frames."""
    f, m = process.num_frames, process.num_clean
    data = chain_matrix(gamma, f) if process.mixes_data else jnp.eye(f)
    noise = chain_matrix(gamma, f - m) if process.mixes_noise else jnp.eye(f - m)
    return data, jnp.zeros((f, f)).at[m:, m:].set(noise)


def exact_denoiser(process, truth, context, eta):
    """E[target | z, context] for rows of context [b, p]."""
    lift, covariance = truth.conditional()
    m = process.num_clean

    def denoise(z, logsnr):
        level = logsnr[0, -1]
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(level)), jnp.sqrt(jax.nn.sigmoid(-level))
        data, noise = corruption_matrices(process, 1 - eta * sigma**2)
        cov_y, cov_n = (data @ covariance @ data.T)[m:, m:], (noise @ noise.T)[m:, m:]
        mean_y = (context @ (data @ lift).T)[:, m:]
        surprise = z[:, m:, 0, 0, 0] - alpha * mean_y
        weights = jnp.linalg.solve(alpha**2 * cov_y + sigma**2 * cov_n, surprise.T)
        y = mean_y + (alpha * cov_y @ weights).T
        n = (sigma * cov_n @ weights).T
        prediction = {"eps": n, "x0": y, "v": alpha * n - sigma * y}[process.prediction]
        return jnp.zeros_like(z).at[:, m:, 0, 0, 0].set(prediction)

    return denoise


def _frames(rows):
    return rows[:, :, None, None, None]


def _prior(process, start, eta):
    """The matrix of the noise that sampling starts from."""
    sigma = process.schedule.sigma(start)
    return corruption_matrices(process, 1 - eta * sigma**2)[1]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def sampled_law(process, truth, sampler, eta, taus):
    """(mean [f, p] as a map of the context, covariance [f, f]) of what the sampler draws on the grid taus."""
    f, p = process.num_frames, process.num_context
    start = _prior(process, taus[0], eta)
    given = jnp.eye(f, p) if process.num_clean else jnp.zeros((f, p))
    if sampler.method == "ancestral":
        return _propagate(process, truth, sampler, eta, taus, given, start @ start.T)
    context = jnp.concatenate([jnp.eye(p), jnp.zeros((f, p))])
    z = _frames(jnp.concatenate([given.T, start.T]))
    denoise = exact_denoiser(process, truth, context, eta)
    levels = process.levels(jnp.full((p + f,), taus[0]), jnp.zeros((p + f,), bool))
    keys = jax.random.split(jax.random.key(0), p + f)
    state = integrate(keys, process, denoise, State(z, jnp.zeros_like(z), levels.t), taus, sampler)
    out = state.z[:, :, 0, 0, 0]
    return out[:p].T, out[p:].T @ out[p:]


def _propagate(process, truth, sampler, eta, taus, mean, covariance):
    """Carry mean map and covariance through the steps: each is linear in (context, z, fresh noise)."""
    f, p = process.num_frames, process.num_context
    inputs = jnp.eye(p + f + f)
    context, z, fresh = inputs[:, :p], _frames(inputs[:, p : p + f]), _frames(inputs[:, p + f :])
    denoise = exact_denoiser(process, truth, context, eta)

    def step(law, interval):
        mean, covariance = law
        start, end = (
            process.levels(jnp.full(len(inputs), tau), jnp.zeros(len(inputs), bool)) for tau in interval
        )
        prediction = denoise(z, process.logsnr(start))
        state = State(z, jnp.zeros_like(z), start.t)
        out = update(process, sampler, state, prediction, fresh, start, end).z[:, :, 0, 0, 0].T
        of_context, of_z, of_fresh = out[:, :p], out[:, p : p + f], out[:, p + f :]
        return (of_context + of_z @ mean, of_z @ covariance @ of_z.T + of_fresh @ of_fresh.T), None

    return jax.lax.scan(step, (mean, covariance), (taus[:-1], taus[1:]))[0]


def error(process, truth, sampler, eta, taus):
    """Largest deviation of the sampled law from the exact one, over the mean map and the covariance."""
    lift, covariance = truth.conditional()
    mean, sampled = sampled_law(process, truth, sampler, eta, taus)
    return max(np.abs(mean - lift).max(), np.abs(sampled - covariance).max())
