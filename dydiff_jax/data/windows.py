"""Windows: frames of one trajectory that follow each other, cut to one crop."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dydiff_jax.data.trajectories import Trajectories
from dydiff_jax.types import Batch


class Place(NamedTuple):
    """Where a window is cut: trajectory, first frame, first row and first column; mirrored in x or not."""

    trajectory: int
    frame: int
    row: int
    column: int
    mirrored: bool = False


class WindowShape(NamedTuple):
    """The size of a window: f frames of height h and width w, and how many rows of forcings reach beyond the frames."""

    frames: int
    height: int
    width: int
    beyond: int = 0


@dataclasses.dataclass(frozen=True)
class Windows:
    """A sequence of windows: `windows[i]` is a Batch without the batch axis.

    Frames [f, h, w, c] have the dtype of `Trajectories.dtype`, but float32 where mirroring changes the sign of unsigned
    values; forcings and static fields are float32. In a mirrored
    window the columns of frames, mask and static fields are reversed, and channels of frames take the sign of
    `Trajectories.mirror`; static fields keep theirs, and forcings stay as they are.

    Attributes:
      trajectories: what is cut.
      shape: the size of each window.
      places: int [n, 4]: trajectory, first frame, first row and first column of each window; the crops of one
        moment follow each other.
      random_crop: whether `draw` moves a window to a random crop.
      flip: whether `draw` mirrors half of the windows in x.
    """

    trajectories: Trajectories
    shape: WindowShape
    places: np.ndarray
    random_crop: bool = False
    flip: bool = False

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Batch:
        return self.read(self.place(index))

    def place(self, index: int) -> Place:
        """Where window `index` is cut."""
        return Place(*(int(number) for number in self.places[index]))

    @property
    def crops(self) -> np.ndarray:
        """[n], one number for each crop of the grid; the first column where crops span all rows."""
        return self.places[:, 2] * self.trajectories.grid[1] + self.places[:, 3]

    def read(self, place: Place, frames: Sequence[int] | None = None) -> Batch:
        """The window at any place, or these frames of it; columns past the last are the first again."""
        if frames is None:
            return self._read(place, self.shape)
        shape = self.shape._replace(frames=1, beyond=0)
        parts = [self._read(place._replace(frame=place.frame + number), shape) for number in frames]
        frames_, observed, forcings = (
            None if parts[0][column] is None else np.concatenate([part[column] for part in parts])
            for column in range(3)
        )
        return Batch(frames_, observed, forcings, parts[0].static, np.asarray(frames, np.int32))

    def _read(self, place: Place, shape: WindowShape) -> Batch:
        data, number = self.trajectories, place.trajectory
        start, stop = place.frame, place.frame + shape.frames
        frames = self._crop(place, lambda *box: data.read(number, start, stop, *box))
        if (place.mirrored or self.flip) and min(data.mirror) < 0 and frames.dtype.kind == "u":
            frames = frames.astype(np.float32)  # of all windows of a split, as a batch has one dtype
        if place.mirrored:
            frames = frames * np.asarray(data.mirror, frames.dtype)
        observed, static, forcings = None, None, None
        if data.observed is not None:
            observed = self._crop(place, lambda *box: data.read_observed(number, start, stop, *box))
        if data.static is not None:
            static = self._crop(place, lambda *box: np.asarray(data.static[None, *box], np.float32))[0]
        if data.forcings is not None:
            forcings = np.asarray(data.forcings[number][start : stop + shape.beyond], np.float32)
        return Batch(np.ascontiguousarray(frames), observed, forcings, static)

    def _crop(self, place: Place, read: Callable[[slice, slice], np.ndarray]) -> np.ndarray:
        """The rows and columns of a place, [., height, width, .], wrapped around and mirrored in x."""
        last = self.trajectories.grid[1]
        rows, end = slice(place.row, place.row + self.shape.height), place.column + self.shape.width
        found = read(rows, slice(place.column, min(end, last)))
        if end > last:
            found = np.concatenate([found, read(rows, slice(0, end - last))], axis=2)
        return np.ascontiguousarray(found[:, :, ::-1] if place.mirrored else found)

    def draw(self, index: int, rng: np.random.Generator) -> Place:
        """Where to cut window `index` for training: its own frames, at a random crop and mirrored or not."""
        place = self.place(index)
        if self.random_crop:
            rows, columns = self.trajectories.grid
            last = columns - 1 if self.trajectories.periodic_x else columns - self.shape.width
            row, column = rng.integers(0, (rows - self.shape.height, last), endpoint=True)
            place = place._replace(row=int(row), column=int(column))
        return place._replace(mirrored=self.flip and bool(rng.integers(2)))

    def batch(self) -> Batch:
        """All windows, with a batch axis."""
        return stack([self[index] for index in range(len(self))])


def stack(windows: list[Batch]) -> Batch:
    """Windows to a batch."""
    columns = zip(*windows, strict=True)
    return Batch(*(None if entries[0] is None else np.stack(entries) for entries in columns))


def select(windows: Windows, count: int) -> Windows:
    """`count` different windows, evenly spaced and going round the crops; always the same ones.

    Raises:
      ValueError: there are fewer windows than that.
    """
    total = len(windows)
    if not 1 <= count <= total:
        raise ValueError(f"expected to select between 1 and {total} windows, got {count}")
    crops = len(np.unique(windows.crops))
    moments = total // crops
    numbers = np.arange(count)
    chosen = numbers * moments // count * crops + numbers % crops if count <= moments * crops else numbers
    return dataclasses.replace(windows, places=windows.places[chosen])
