"""The published sets of nn-benchmark's spring mesh: a folder with system_meta.json and trajectories.npz."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
from absl import logging

from dydiff_jax.data import cache
from dydiff_jax.data.simulators import spring_mesh as solver
from dydiff_jax.data.sources.source import local_path, register
from dydiff_jax.data.sources.spring_mesh import FIELDS, STATIC_NAMES, TIME_UNIT, UNIT
from dydiff_jax.data.trajectories import Trajectories
from dydiff_jax.types import DataSpec

META, ARRAYS = "system_meta.json", "trajectories.npz"
WHERE = "nn-benchmark (karlotness/nn-benchmark on GitHub) says where to get the sets; unpack one and name its folder"


@register("spring_mesh_file")
@dataclasses.dataclass(frozen=True)
class SpringMeshFile:
    """Momenta and positions of 10 x 10 points, [T, y, x, (p_x, p_y, q_x, q_y)], as `spring_mesh` simulates them.

    p and q of a trajectory are [T, 100, 2] in the file, with the keys that system_meta.json names in `field_keys`. The
    order of the 100 points follows from the first frame: a start is displaced by less than half a spacing, so that each
    position rounds to that at rest. (The generator counts column by column, y fastest.) The static field "fixed" marks
    the row y = 9 that the generator holds, which is assumed. All trajectories are read into memory, 1.3 MB each.

    A set of an older generator, in which velocities fall by 0.1^t in place of exp(-0.1 t), is read with a warning.

    Attributes:
      path: folder of the training set.
      valid_path: folder of the validation set, "" for none.
      test_path: folder of the test set, "" for none. With either of them ``dataset.split = "given"`` is possible.
    """

    path: str
    valid_path: str = ""
    test_path: str = ""

    def spec(self) -> DataSpec:
        """From system_meta.json."""
        interval = self._interval([meta for _, meta, _ in self._sets()])
        grid = (solver.SIDE, solver.SIDE)
        return DataSpec((*grid, len(FIELDS)), FIELDS, UNIT, interval, TIME_UNIT, static=STATIC_NAMES)

    def load(self) -> Trajectories:
        """Read the sets.

        Raises:
          FileNotFoundError: a file is missing.
          ValueError: one is broken or holds something else.
        """
        arrays, names, roles = [], [], []
        for role, meta, folder in self._sets():
            with cache.open_npy(folder / ARRAYS) as archive:
                found = [_trajectory(folder / ARRAYS, archive, entry) for entry in meta["trajectories"]]
            interval = meta["trajectories"][0]["time_step_size"]
            _warn_if_overdamped(folder / ARRAYS, found[0], interval)
            arrays += found
            names += [f"{folder / ARRAYS}, trajectory {number}" for number in range(len(found))]
            roles += [role] * len(found)
        return Trajectories(
            arrays=tuple(arrays),
            names=tuple(names),
            fields=FIELDS,
            interval=self.spec().interval,
            time_unit=TIME_UNIT,
            unit=UNIT,
            periodic_x=False,
            roles=tuple(roles) if self.valid_path or self.test_path else None,
            static=solver.FIXED,
            static_names=STATIC_NAMES,
        )

    def _sets(self) -> list[tuple[str, dict, pathlib.Path]]:
        given = (("train", self.path), ("valid", self.valid_path), ("test", self.test_path))
        folders = [
            (role, local_path(path, f"the folder of a spring mesh set with {META}; {WHERE}"))
            for role, path in given
            if path or role == "train"
        ]
        return [(role, _read_meta(folder), folder) for role, folder in folders]

    def _interval(self, metas: list[dict]) -> float:
        found = sorted({float(entry["time_step_size"]) for meta in metas for entry in meta["trajectories"]})
        if len(found) != 1:
            raise ValueError(
                f"{self.path}: expected one time_step_size, found {found}; read sets of one interval together"
            )
        return found[0]


def _read_meta(folder: pathlib.Path) -> dict:
    path = folder / META
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the description of a set, found no such file; {WHERE}")
    try:
        meta = json.loads(path.read_text())
        complete = bool(meta["trajectories"])
        for entry in meta["trajectories"]:
            complete &= {"p", "q"} <= set(entry["field_keys"]) and float(entry["time_step_size"]) > 0
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected trajectories, each with field_keys and time_step_size, found "
            f"{type(error).__name__}: {error}; {WHERE}"
        ) from error
    if not complete:
        raise ValueError(
            f"{path}: expected trajectories, each with the field_keys p and q and a time_step_size above 0, found "
            f"others; {WHERE}"
        )
    return meta


def _trajectory(path: pathlib.Path, archive, entry: dict) -> np.ndarray:
    """Frames [T, y, x, 4] of one trajectory, float32."""
    keys = [entry["field_keys"][name] for name in ("p", "q")]
    for key in keys:
        if key not in archive:
            raise ValueError(
                f"{path}: expected the array {key}, which {META} names, found {len(archive.files)} others; take "
                "both files from one set"
            )
    try:
        p, q = (archive[key] for key in keys)
    except cache.BROKEN as error:
        raise cache.broken(path, error) from error
    points = solver.SIDE**2
    if p.shape != q.shape or p.shape[1:] != (points, 2) or len(p) == 0:
        raise ValueError(
            f"{path}: expected {keys[0]} and {keys[1]} of one shape [T, {points}, 2], found {p.shape} and {q.shape}; "
            "take a set of the 10 x 10 mesh"
        )
    order = _row_by_row(path, keys[1], q[0])
    frames = np.concatenate([p, q], axis=-1)[:, order].astype(np.float32)
    return frames.reshape(len(frames), solver.SIDE, solver.SIDE, len(FIELDS))


def _row_by_row(path: pathlib.Path, key: str, start: np.ndarray) -> np.ndarray:
    """The number in the file of each point of the mesh, row by row in y."""
    x, y = np.rint(start).T
    order = np.lexsort((x, y))
    if not np.array_equal(np.rint(start)[order], solver.REST.reshape(-1, 2)):
        raise ValueError(
            f"{path}: expected the first frame of {key} within half a spacing of the points of a 10 x 10 mesh, found "
            "others; take a set that starts at rest, all points displaced by less than .5"
        )
    return order


def _warn_if_overdamped(path: pathlib.Path, frames: np.ndarray, interval: float) -> None:
    """Estimate gamma = (E(0) - E(end)) / integral of sum |v|^2, and say if it is nearer to ln 10 than to 0.1."""
    ends = (solver.Mesh(frame[..., :2], frame[..., 2:] - solver.REST) for frame in (frames[0], frames[-1]))
    first, last = (float(jax.jit(solver.energy)(mesh)) for mesh in ends)
    squares = (frames[..., :2].astype(np.float64) ** 2).sum(axis=(1, 2, 3))
    passed = np.trapezoid(squares, dx=interval)
    damping = (first - last) / passed if passed > 0 else solver.DAMPING
    if damping > np.sqrt(solver.DAMPING * np.log(10.0)):
        logging.warning(
            "%s: the energy decays as with a damping of %.2f, expected %.2f: a set of an older generator, which "
            "multiplies velocities by 0.1^dt; its scores are not those of the published experiment",
            path,
            damping,
            solver.DAMPING,
        )
