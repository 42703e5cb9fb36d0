"""A checkpoint comes back bit for bit, on any mesh, or is refused with a reason."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from running import assert_same_bits

from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.training import state
from dydiff_jax.training.checkpoints import loading
from dydiff_jax.training.checkpoints import manager as checkpoints

ONE = meshes.MeshOptions(data=1)
ALL = meshes.MeshOptions(data=2, fsdp=2, tensor=2)


def abstract_of(mesh_options, width=16):
    stage = toy.make_stage(width, steps=100)
    return state.abstract_state(stage.objective, stage.recipe, meshes.make_mesh(mesh_options))


def random_state(abstract):
    rng = np.random.default_rng(0)

    def draw(leaf):
        values = rng.integers(0, 100, leaf.shape) if leaf.dtype == jnp.int32 else rng.normal(size=leaf.shape)
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(draw, abstract)


def save(directory, current, steps=(1,), keep_last=2, keep_every=None):
    with checkpoints.Checkpoints(directory, keep_last, keep_every) as opened:
        for step in steps:
            opened.save(step, current, {"count": step})


def restore(directory, abstract):
    with checkpoints.Checkpoints(directory, 2, None) as opened:
        return opened.restore(abstract)


def edit_abstract(abstract, **changes):
    """The abstract state with another shape or dtype for up/kernel of its parameters."""
    leaf = abstract.params["up"]["kernel"]
    new = jax.ShapeDtypeStruct(**(dict(shape=leaf.shape, dtype=leaf.dtype, sharding=leaf.sharding) | changes))
    return abstract.replace(params=abstract.params | {"up": abstract.params["up"] | {"kernel": new}})


@pytest.mark.parametrize("written, read", [(ALL, ALL), (ALL, ONE), (ONE, ALL)], ids=["same", "fewer", "more"])
def test_a_checkpoint_fits_any_mesh(tmp_path, written, read):
    current = random_state(abstract_of(written))
    save(tmp_path, current)
    abstract = abstract_of(read)
    found, notes = restore(tmp_path, abstract)
    assert_same_bits(found, current)
    assert notes == {"count": 1}
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding == wanted.sharding


def test_saving_is_safe_from_donation(tmp_path):
    """The step that follows a save reuses the buffers of the state while they are being written."""
    current = random_state(abstract_of(ALL, width=4096))
    expected = jax.device_get(current)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf + 1, s), donate_argnums=0)
    with checkpoints.Checkpoints(tmp_path, 2, None) as opened:
        opened.save(1, current, {})
        overwrite(current)
    assert_same_bits(restore(tmp_path, abstract_of(ALL, width=4096))[0], expected)


def test_ema_is_read_alone_and_nothing_is_touched(tmp_path):
    abstract = abstract_of(ALL)
    current = random_state(abstract)
    save(tmp_path, current, steps=(1, 2))
    shutil.rmtree(tmp_path / "2" / "opt_state")
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    ema, step = loading.load_ema(tmp_path, abstract.ema)
    assert step == 2
    assert_same_bits(ema, current.ema)
    assert (tmp_path / "3.orbax-checkpoint-tmp").is_dir()
    assert loading.load_ema(tmp_path, abstract.ema, step=1)[1] == 1


def test_missing_checkpoints_are_named(tmp_path):
    abstract = abstract_of(ONE)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        loading.load_ema(tmp_path / "nowhere", abstract.ema)
    with pytest.raises(FileNotFoundError, match="expected a checkpoint, found none"):
        loading.load_ema(tmp_path, abstract.ema)
    save(tmp_path, random_state(abstract), steps=(5,))
    with pytest.raises(FileNotFoundError, match=r"checkpoint 7, found \[5\]"):
        loading.load_ema(tmp_path, abstract.ema, step=7)


def test_policy_keeps_the_newest_and_every_few(tmp_path):
    save(tmp_path, random_state(abstract_of(ONE)), steps=range(1, 9), keep_last=2, keep_every=3)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [3, 6, 7, 8]


@pytest.mark.parametrize("keep_best, kept", [(True, ["2", "5", "6"]), (False, ["5", "6"])])
def test_the_best_checkpoint_is_kept_too(tmp_path, keep_best, kept):
    """As the notes of the one that is saved name it; of those that were the best before, none stays for it."""
    scores = {1: 0.5, 2: 0.1, 3: 0.3, 4: 0.2, 5: 0.4, 6: 0.1}
    current, best = random_state(abstract_of(ONE)), None
    with checkpoints.Checkpoints(tmp_path, 2, None, keep_best=keep_best) as opened:
        assert loading.best_step(tmp_path) is None
        for step, score in scores.items():
            best = best if best and best["score"] <= score else {"step": step, "score": score}
            opened.save(step, current, {"best": best})
            if step == 1:
                opened.wait()
                assert loading.best_step(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    assert loading.best_step(tmp_path) == 2
    if keep_best:
        assert loading.load_ema(tmp_path, abstract_of(ONE).ema, step=2)[1] == 2


def test_leftovers_of_a_killed_save_are_ignored_and_removed(tmp_path):
    abstract = abstract_of(ONE)
    current = random_state(abstract)
    save(tmp_path, current, steps=(4,))
    half = tmp_path / "8.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "4", half)
    (half / "commit_success.txt").unlink(missing_ok=True)
    with checkpoints.Checkpoints(tmp_path, 2, None) as opened:
        assert_same_bits(opened.restore(abstract)[0], current)
        opened.save(8, current, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "8"]


def test_another_width_is_refused_by_leaf(tmp_path):
    save(tmp_path, random_state(abstract_of(ONE)))
    with pytest.raises(ValueError) as error:
        restore(tmp_path, abstract_of(ONE, width=32))
    assert "params/up/kernel: expected float32[8, 32], found float32[8, 16]" in str(error.value)


def test_another_dtype_is_refused(tmp_path):
    abstract = abstract_of(ONE)
    save(tmp_path, random_state(abstract))
    with pytest.raises(
        ValueError, match=r"params/up/kernel: expected bfloat16\[8, 16\], found float32\[8, 16\]"
    ):
        restore(tmp_path, edit_abstract(abstract, dtype=jnp.bfloat16))


def test_missing_and_surplus_leaves_are_refused(tmp_path):
    abstract = abstract_of(ONE)
    save(tmp_path, random_state(abstract))
    renamed = abstract.replace(params={"up": abstract.params["up"], "new": abstract.params["out"]})
    with pytest.raises(ValueError) as error:
        restore(tmp_path, renamed)
    assert "params/new/bias: expected float32[8], found nothing" in str(error.value)
    assert "params/out/bias: expected nothing, found float32[8]" in str(error.value)
