"""The exact law of what a rollout draws, with the exact denoiser of a stationary AR(1) process.

Everything is linear and Gaussian. A rollout is fed basis vectors for its context and for every draw of noise, in
float64 and without Monte Carlo; the covariance of its frames follows.
"""

import contextlib
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from gaussian import AutoRegression
from gaussian import exact_denoiser as exact_given_context

from dydiff_jax.diffusion import rollout as rollouts
from dydiff_jax.diffusion import sampler as samplers

A = 0.9
INNOVATION = 1 - A**2

#: First entry of the key data of the basis "keys": which draws they stand for.
START, ENTER, STEP = 0, 1, 2


def covariance(size):
    """Of frames of the process, unit variance."""
    return A ** np.abs(np.subtract.outer(np.arange(size), np.arange(size)))


def chain(gamma, first=0):
    """D for a gamma of each frame, the recursion starting undamped at frame ``first``; zero before it."""
    size = len(gamma)
    rows = [jnp.eye(size)[i] * (i >= first) for i in range(first + 1)]
    for i in range(first + 1, size):
        rows.append(jnp.sqrt(1 - gamma[i]) * rows[-1] + jnp.sqrt(gamma[i]) * jnp.eye(size)[i])
    return jnp.stack(rows)


def window_maps(process, eta, logsnr, gamma=None):
    """(alpha, sigma, D_y, D_n) [f], [f], [f, f], [f, f] of a window with clean context at these levels.

    gamma [f] is by default that of each frame's own time.
    """
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
    gamma = 1 - eta * sigma**2 if gamma is None else gamma
    m = process.num_context
    data = chain(gamma) if eta and process.mixes_data else jnp.eye(len(alpha))
    noise = chain(gamma, m) if eta and process.mixes_noise else jnp.diag(sigma > 0).astype(float)
    return alpha, sigma, data, noise


def exact_denoiser(process, eta):
    """E[target | z] for a window whose context is among z, at t = 0."""
    prior = jnp.asarray(covariance(process.num_frames))

    def denoise(z, logsnr):
        alpha, sigma, data, noise = window_maps(process, eta, logsnr[0])
        data_z, noise_z = alpha[:, None] * data, sigma[:, None] * noise
        gain = jnp.linalg.inv(data_z @ prior @ data_z.T + noise_z @ noise_z.T)
        y, n = data @ prior @ data_z.T @ gain, noise @ noise_z.T @ gain
        wanted = {"v": alpha[:, None] * n - sigma[:, None] * y, "x0": y}[process.prediction]
        return jnp.einsum("ij,bjhwc->bihwc", wanted, z)

    return denoise


def exact_residual_variance(process, eta, tau):
    """E|n - n_hat|^2 of the last frame of a sliding window at time tau."""
    levels = process.levels(jnp.full((1,), tau), jnp.ones((1,), bool))
    alpha, sigma, data, noise = window_maps(process, eta, process.logsnr(levels)[0])
    data_z, noise_z = alpha[:, None] * data, sigma[:, None] * noise
    last = noise[-1] @ noise_z.T
    total = data_z @ covariance(process.num_frames) @ data_z.T + noise_z @ noise_z.T
    return 1.0 - last @ jnp.linalg.inv(total) @ last


@contextlib.contextmanager
def basis_noise(process, passes, steps):
    """While this holds, every draw of white noise is a block of unit vectors of its own."""
    f, p = process.num_frames, process.num_context
    offsets = {START: p, ENTER: p + f, STEP: p + f + passes * f}
    size = p + f + passes * f + steps * f

    def keys(kind, number=0):
        return jax.random.wrap_key_data(
            jnp.broadcast_to(jnp.stack([jnp.uint32(kind), jnp.asarray(number, jnp.uint32)]), (size, 2))
        )

    def white_noise(given, like):
        kind, number = jax.random.key_data(given)[0]
        first = jnp.asarray([offsets[START], offsets[ENTER], offsets[STEP]])[kind] + number * f
        return jnp.asarray(jnp.arange(size)[:, None] == first + jnp.arange(f), like.dtype)[
            :, :, None, None, None
        ]

    def fold(given, number):
        kind = jax.random.key_data(given)[0, 0]
        return keys(jnp.where(kind == START, ENTER, kind), number)

    patches = [
        mock.patch.object(samplers, "split_keys", lambda _: (keys(START), keys(STEP))),
        mock.patch.object(samplers, "fold", fold),
        mock.patch.object(samplers, "white_noise", white_noise),
        mock.patch.object(rollouts, "white_noise", white_noise),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield size


@partial(jax.jit, static_argnums=(0, 1, 2, 3), compiler_options={"xla_backend_optimization_level": 1})
def rolled_covariance(rollout, eta, frames, exact_residual=True, residual_variance=0.0):
    """Covariance [p + frames, p + frames] of stationary context and the frames that a rollout draws after it."""
    process = rollout.process
    p, stride = process.num_context, process.stride
    passes = -(-(frames + rollout.warmup_frames) // stride)
    ancestral = rollout.sampler.name == "ancestral"
    steps = passes * (rollout.timesteps().shape[1] - 1) if ancestral else 0
    if exact_residual and process.correlated_noise:
        residual_variance = exact_residual_variance(process, eta, rollout.timesteps()[-1, -2])
    with basis_noise(process, passes, steps) as size:
        root = jnp.asarray(np.linalg.cholesky(covariance(p)).T) if p else jnp.zeros((0, 0))
        context = jnp.zeros((size, p)).at[:p].set(root)[:, :, None, None, None]
        keys = jax.random.split(jax.random.key(0), size)
        carry = rollout.begin(keys, context)

        def bind(context, first):
            if stride == 1:
                return exact_denoiser(process, eta)
            rows = context[:, :, 0, 0, 0]
            return exact_given_context(process, AutoRegression(p, process.num_forecast, A), rows, eta)

        _, drawn = rollout.advance(keys, bind, carry, passes, residual_variance)
    rows = jnp.concatenate([context, drawn[:, rollout.warmup_frames :][:, :frames]], axis=1)[:, :, 0, 0, 0]
    return rows.T @ rows


def error(rollout, eta, frames, **options):
    """Largest deviation of the covariance of context and rollout from that of the process."""
    p = rollout.process.num_context
    return float(np.abs(rolled_covariance(rollout, eta, frames, **options) - covariance(p + frames)).max())
