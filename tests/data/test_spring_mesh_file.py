"""The reader of nn-benchmark's sets of the spring mesh."""

import json

import jax
import numpy as np
import pytest

from dydiff_jax.data.simulators import spring_mesh as solver
from dydiff_jax.data.sources.spring_mesh_file import SpringMeshFile

INTERVAL = 0.00781


def write(folder, columns=True, damping=None, count=2, frames=60):
    """A set as nn-benchmark writes it, from a simulation; the frames [count, T, 10, 10, 4] that it holds."""
    run = jax.jit(lambda mesh: jax.lax.scan(move, mesh, length=frames)[1])

    def move(mesh, _):
        later = solver.step(mesh, INTERVAL)
        if damping is not None:
            later = later._replace(velocity=later.velocity * np.exp((0.1 - damping) * INTERVAL))
        return later, mesh

    arrays, entries, films = {}, [], []
    for number in range(count):
        mesh = run(solver.initial(jax.random.key(number), 0.0, 0.35))
        p, q = np.float64(mesh.velocity), solver.REST + np.float64(mesh.displacement)
        films.append(np.concatenate([p, q], axis=-1))
        name = f"traj_{number:05d}"
        for key, values in (("p", p), ("q", q)):
            order = values.swapaxes(1, 2) if columns else values
            arrays[f"{name}_{key}"] = order.reshape(frames, 100, 2)
        fields = {key: f"{name}_{key}" for key in ("p", "q")}
        entries.append(dict(name=name, time_step_size=INTERVAL, num_time_steps=frames, field_keys=fields))
    folder.mkdir()
    (folder / "system_meta.json").write_text(json.dumps(dict(system="spring-mesh", trajectories=entries)))
    np.savez(folder / "trajectories.npz", **arrays)
    return np.array(films), entries, arrays


@pytest.mark.parametrize("columns", [True, False])
def test_a_published_set_is_read_whatever_the_order_of_its_points(tmp_path, columns, caplog):
    films, *_ = write(tmp_path / "train", columns)
    found = SpringMeshFile(str(tmp_path / "train")).load()
    np.testing.assert_array_equal(found.arrays, films.astype(np.float32))
    assert found.roles is None and found.interval == INTERVAL and "damping" not in caplog.text


def test_three_sets_come_split(tmp_path):
    for role, count in (("train", 3), ("valid", 1), ("test", 2)):
        write(tmp_path / role, count=count, frames=8)
    paths = {f"{role}_path": str(tmp_path / role) for role in ("valid", "test")}
    source = SpringMeshFile(str(tmp_path / "train"), **paths)
    assert source.load().roles == ("train",) * 3 + ("valid",) + ("test",) * 2
    assert source.spec().frame_shape == (10, 10, 4) and source.spec().static == ("fixed",)


def test_an_older_generator_is_named_by_its_decay(tmp_path, caplog):
    write(tmp_path / "old", damping=np.log(10.0))
    SpringMeshFile(str(tmp_path / "old")).load()
    (record,) = [r for r in caplog.records if "older generator" in r.getMessage()]
    assert str(tmp_path / "old" / "trajectories.npz") in record.getMessage()
    assert "a damping of 2.3" in record.getMessage()


def refused(folder, error, message):
    with pytest.raises(error, match=message):
        SpringMeshFile(str(folder)).load()


def test_a_set_that_is_not_whole_is_refused_by_name(tmp_path):
    refused("", FileNotFoundError, "path: expected the folder of a spring mesh set")
    refused(tmp_path, FileNotFoundError, r"system_meta.json: expected .*, found no such file; nn-benchmark")
    _, entries, arrays = write(tmp_path / "set", frames=5)
    meta, archive = tmp_path / "set" / "system_meta.json", tmp_path / "set" / "trajectories.npz"

    def save(**changes):
        np.savez(archive, **{key: value for key, value in (arrays | changes).items() if value is not None})

    save(traj_00001_q=None)
    refused(
        meta.parent, ValueError, r"trajectories.npz: expected the array traj_00001_q, .* found .*; take both"
    )
    save(traj_00001_q=arrays["traj_00001_q"][:-1])
    refused(
        meta.parent, ValueError, r"expected traj_00001_p and .* found \(5, 100, 2\) and \(4, 100, 2\); take"
    )
    save(traj_00000_p=arrays["traj_00000_p"][:, :81], traj_00000_q=arrays["traj_00000_q"][:, :81])
    refused(meta.parent, ValueError, r"of one shape \[T, 100, 2\], found \(5, 81, 2\)")
    save(traj_00000_q=arrays["traj_00000_q"] + 1.0)
    refused(
        meta.parent, ValueError, r"expected the first frame of traj_00000_q within half .* found .*; take a"
    )
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    refused(meta.parent, ValueError, r"trajectories.npz: not a whole .npy or .npz")
    archive.unlink()
    refused(meta.parent, FileNotFoundError, r"trajectories.npz: no such file")
    save()
    for trajectories, message in [
        ([], "expected trajectories"),
        ([entries[0] | dict(field_keys=dict(p="traj_00000_p"))], "with the field_keys p and q"),
        ([dict(name="x")], "found KeyError: 'field_keys'; nn-benchmark"),
        ([entries[0], entries[1] | dict(time_step_size=0.1)], "expected one time_step_size, found"),
    ]:
        meta.write_text(json.dumps(dict(trajectories=trajectories)))
        refused(meta.parent, ValueError, message)
    meta.write_text("{")
    refused(meta.parent, ValueError, r"system_meta.json: expected .* JSONDecodeError")
