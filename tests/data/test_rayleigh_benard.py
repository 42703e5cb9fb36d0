"""The convection data set: what it records and what it refuses."""

import jax
import numpy as np
import pytest

from dydiff_jax.data.simulators import ensemble
from dydiff_jax.data.simulators import rayleigh_benard as solver
from dydiff_jax.data.sources.rayleigh_benard import RayleighBenard

SMALL = dict(rows=8, columns=16, out_rows=4, downsample="mean", rayleigh=1e5, spin_up=1.0, duration=2.0)


def test_frames_are_block_means_of_the_velocity_at_the_cell_centres(tmp_path):
    source = RayleighBenard(**SMALL, cache_dir=str(tmp_path), trajectories=1)
    source.folder.mkdir(parents=True)
    ensemble.simulate(source, [0], lambda frames: None)
    flow = solver.physics(source.rayleigh, source.prandtl)
    fluid = solver.initial(jax.random.fold_in(jax.random.key(0), 0), 8, 16)
    fluid = jax.jit(solver.advance)(fluid, flow, source.spin_up + source.interval)
    cells = np.asarray(solver.velocity(fluid))
    expected = (cells[::2, ::2] + cells[1::2, ::2] + cells[::2, 1::2] + cells[1::2, 1::2]) / 4
    film = source.parts()[0].open()
    assert film.shape == (8, 4, 8, 2) and film.dtype == np.float32
    np.testing.assert_allclose(film[0], expected, atol=1e-6)


def test_a_stride_keeps_one_cell_of_each_block():
    source = RayleighBenard(**SMALL | dict(downsample="stride"))
    values = np.arange(8 * 16.0).reshape(8, 16)
    fluid = solver.Fluid(values, values[::-1], values)
    np.testing.assert_array_equal(source.frame(fluid), solver.velocity(fluid)[::2, ::2])


def test_the_published_preset_is_the_layout_of_tf_net():
    source = RayleighBenard(trajectories=1)
    (part,) = source.parts()
    assert part.shape == (1500, 64, 448, 2)
    assert (source.rayleigh, source.prandtl, source.rows, source.columns) == (2.5e8, 0.71, 256, 1792)


@pytest.mark.parametrize(
    "changes",
    [
        dict(rayleigh=0.0),
        dict(prandtl=-1.0),
        dict(rows=4),
        dict(columns=4),
        dict(out_rows=3),
        dict(columns=17),
    ],
)
def test_options_are_checked_and_named(changes):
    name = "out_rows" if changes == dict(columns=17) else next(iter(changes))
    with pytest.raises(ValueError, match=f"^{name}: "):
        RayleighBenard(**SMALL | changes)
