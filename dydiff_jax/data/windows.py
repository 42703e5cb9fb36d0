"""Windows: frames of one trajectory that follow each other, cut to one crop."""

import dataclasses
from typing import NamedTuple

import numpy as np

from dydiff_jax.data.sources.source import Trajectories
from dydiff_jax.types import Batch


class Place(NamedTuple):
    """Where a window is cut: trajectory, first frame, first row and first column; mirrored in x or not."""

    trajectory: int
    frame: int
    row: int
    column: int
    mirrored: bool = False


class Cut(NamedTuple):
    """The size of a window: f frames of height h and width w."""

    frames: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Windows:
    """A sequence of windows: `windows[i]` is a Batch without the batch axis, frames float32 [f, h, w, c].

    Attributes:
      trajectories: what is cut.
      cut: the size of each window.
      places: int [n, 4]: trajectory, first frame, first row and first column of each window; the crops of one
        moment follow each other.
      random_crop: whether `draw` moves a window to a random crop.
      flip: whether `draw` mirrors half of the windows in x.
    """

    trajectories: Trajectories
    cut: Cut
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

    def read(self, place: Place) -> Batch:
        """The window at any place; columns past the last are the first again (periodic data only)."""
        height, width, last = self.cut.height, self.cut.width, self.trajectories.grid[1]
        end = place.column + width
        window = self._read(place, slice(place.row, place.row + height), slice(place.column, min(end, last)))
        if end > last:
            rest = self._read(place, slice(place.row, place.row + height), slice(0, end - last))
            window = np.concatenate([window, rest], axis=2)
        if place.mirrored:
            window = window[:, :, ::-1] * np.asarray(self.trajectories.mirror, np.float32)
        return Batch(frames=np.ascontiguousarray(window))

    def _read(self, place: Place, rows: slice, columns: slice) -> np.ndarray:
        stop = place.frame + self.cut.frames
        return self.trajectories.read(place.trajectory, place.frame, stop, rows, columns)

    def draw(self, index: int, rng: np.random.Generator) -> Place:
        """Where to cut window `index` for training: its own frames, at a random crop and mirrored or not."""
        place = self.place(index)
        if self.random_crop:
            (rows, columns), (_, height, width) = self.trajectories.grid, self.cut
            last = columns - 1 if self.trajectories.periodic_x else columns - width
            row, column = rng.integers(0, (rows - height, last), endpoint=True)
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
