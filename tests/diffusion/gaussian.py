"""The exact law of forecasts of a stationary AR(1) process, its exact denoiser, and the law a sampler draws.

Frames are one pixel. Everything is linear and Gaussian, so that a sampler's law is found by feeding it basis
vectors in float64, without Monte Carlo.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dydiff_jax.diffusion.sampler import SamplerState, integrate, time_steps, update


def chain_matrix(gamma, size, xp=np):
    """D for one gamma: D_ij = a^(i-j) b, first column a^i, where a^2 = 1 - gamma, b^2 = gamma."""
    lag = np.subtract.outer(np.arange(size), np.arange(size))
    decay = xp.where(lag >= 0, xp.sqrt(1 - gamma) ** np.maximum(lag, 0), 0.0)
    return decay * xp.where(np.arange(size) == 0, 1.0, xp.sqrt(gamma))


def corruption_matrices(process, gamma, xp=np):
    """(D_y, D_n) over the whole window: z = alpha D_y x + sigma D_n eps on the corrupted frames."""
    f, m = process.num_frames, process.num_clean
    data = chain_matrix(gamma, f, xp) if getattr(process, "mix_data", True) else xp.eye(f)
    noise = chain_matrix(gamma, f - m, xp) if getattr(process, "mix_noise", True) else xp.eye(f - m)
    return data, xp.pad(noise, ((m, 0), (m, 0)))


@dataclasses.dataclass(frozen=True)
class AutoRegression:
    """x^{s+1} = a x^s + sqrt(1 - a^2) xi, p known and k unknown frames: x | c ~ N(lift c, covariance)."""

    p: int
    k: int
    a: float = 0.9

    def joint(self):
        """Covariance of all frames."""
        return self.a ** np.abs(np.subtract.outer(np.arange(self.p + self.k), np.arange(self.p + self.k)))

    def conditional(self):
        """(lift, covariance) of all frames given the first p."""
        cc, fc = self.joint()[: self.p, : self.p], self.joint()[self.p :, : self.p]
        regression = fc @ np.linalg.inv(cc)
        covariance = np.zeros_like(self.joint())
        covariance[self.p :, self.p :] = self.joint()[self.p :, self.p :] - regression @ fc.T
        return np.concatenate([np.eye(self.p), regression]), covariance


def exact_denoiser(process, truth, context, eta):
    """E[target | z, context] for rows of context [b, p]."""
    lift, covariance = truth.conditional()
    m = process.num_clean

    def denoise(z, logsnr):
        level = logsnr[0, -1]
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(level)), jnp.sqrt(jax.nn.sigmoid(-level))
        data, noise = corruption_matrices(process, 1 - eta * sigma**2, jnp)
        cov_y, cov_n = (data @ covariance @ data.T)[m:, m:], (noise @ noise.T)[m:, m:]
        mean_y = (context @ (data @ lift).T)[:, m:]
        surprise = z[:, m:, 0, 0, 0] - alpha * mean_y
        factor = jnp.linalg.cholesky(alpha**2 * cov_y + sigma**2 * cov_n), True
        weights = jax.scipy.linalg.cho_solve(factor, surprise.T)
        y = mean_y + (alpha * cov_y @ weights).T
        n = (sigma * cov_n @ weights).T
        prediction = {"eps": n, "x0": y, "v": alpha * n - sigma * y}[process.prediction]
        return _frames(jnp.pad(prediction, ((0, 0), (m, 0))))

    return denoise


def _frames(rows):
    return rows[:, :, None, None, None]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def sampled_law(process, truth, sampler, eta, taus):
    """(mean [f, p] as a map of the context, covariance [f, f]) of what the sampler draws on the grid taus."""
    f, p = process.num_frames, process.num_context
    start = corruption_matrices(process, 1 - eta * process.schedule.sigma(taus[0]) ** 2, jnp)[1]
    given = jnp.eye(f, p) if process.num_clean else jnp.zeros((f, p))
    if sampler.name == "ancestral":
        return _propagate(process, truth, sampler, eta, taus, given, start @ start.T)
    context = jnp.eye(p + f, p)
    z = _frames(jnp.concatenate([given.T, start.T]))
    denoise = exact_denoiser(process, truth, context, eta)
    levels = process.levels(jnp.full((p + f,), taus[0]), jnp.zeros((p + f,), bool))
    keys = jax.random.split(jax.random.key(0), p + f)
    state = SamplerState(z, jnp.zeros_like(z), jnp.zeros_like(z), levels)
    state = integrate(keys, process, denoise, state, time_steps(taus), sampler)
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
        stay = jnp.zeros(len(inputs), bool)
        start, end = (process.levels(jnp.full(len(inputs), tau), stay) for tau in interval)
        prediction = denoise(z, process.logsnr(start))
        state = SamplerState(z, jnp.zeros_like(z), jnp.zeros_like(z), start)
        out = update(process, sampler, state, prediction, fresh, start, end).z[:, :, 0, 0, 0].T
        of_context, of_z, of_fresh = out[:, :p], out[:, p : p + f], out[:, p + f :]
        return (of_context + of_z @ mean, of_z @ covariance @ of_z.T + of_fresh @ of_fresh.T), None

    return jax.lax.scan(step, (mean, covariance), (taus[:-1], taus[1:]))[0]


def error(process, truth, sampler, eta, taus):
    """Largest deviation of the sampled law from the exact one, over the mean map and the covariance."""
    lift, covariance = truth.conditional()
    mean, sampled = sampled_law(process, truth, sampler, eta, taus)
    return max(np.abs(mean - lift).max(), np.abs(sampled - covariance).max())
