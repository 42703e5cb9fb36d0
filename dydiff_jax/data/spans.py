"""Which frames are for training, for validation and for testing: spans that share no frame."""

import itertools
from typing import NamedTuple

import numpy as np

from dydiff_jax.data.trajectories import Trajectories

#: TF-Net's index split (Wang et al., KDD 2020) for training, validation and testing: sample 7 j + i is crop i
#: of the 100 frames from frame j on.
PUBLISHED_BOUNDS = (0, 6000, 7700, 9800)
PUBLISHED_CROPS = 7
#: Frames of a published sample, and the frame in it that is forecast first.
PUBLISHED_FRAMES, PUBLISHED_TARGET = 100, 40


class Span(NamedTuple):
    """Frames [start, stop) of one trajectory."""

    trajectory: int
    start: int
    stop: int


class Spans(NamedTuple):
    """What each split may read."""

    train: list[Span]
    valid: list[Span]
    test: list[Span]


def by_trajectory(trajectories: Trajectories, fractions: tuple[float, ...]) -> Spans:
    """Whole trajectories: the last ones for testing, those before for validation, the rest for training.

    A split with a fraction above 0 gets at least one trajectory.

    Raises:
      ValueError: there are fewer trajectories than splits.
    """
    total = len(trajectories.arrays)
    valid, test = (max(1, round(share * total)) if share > 0 else 0 for share in fractions[1:])
    train = total - valid - test
    if train < 1:
        raise ValueError(
            f'split "trajectory": {total} trajectories leave none for training beside {valid} for validation '
            f'and {test} for testing; add trajectories or use split "time"'
        )
    spans = _whole(trajectories)
    return Spans(spans[:train], spans[train : train + valid], spans[train + valid :])


def by_time(trajectories: Trajectories, fractions: tuple[float, ...], gap: int) -> Spans:
    """Every trajectory in three pieces in order of time; between them are `gap` frames that no split reads."""
    splits = Spans([], [], [])
    for number, array in enumerate(trajectories.arrays):
        usable = len(array) - gap * (np.count_nonzero(fractions) - 1)
        ends = np.round(np.cumsum(fractions) * max(usable, 0)).astype(int)
        start, skipped = 0, 0
        for spans, share, end in zip(splits, fractions, ends, strict=True):
            if share > 0:
                spans.append(Span(number, start, int(end) + skipped))
                skipped += gap
                start = int(end) + skipped
    return splits


def given(trajectories: Trajectories, fractions: tuple[float, ...]) -> Spans:
    """The split that the files come with; without validation files, training gives up its last trajectories.

    Raises:
      ValueError: the data set does not come split.
    """
    if trajectories.roles is None:
        raise ValueError('split "given": this data set comes without a split; use "time" or "trajectory"')
    owned = list(zip(_whole(trajectories), trajectories.roles, strict=True))
    spans = {role: [span for span, own in owned if own == role] for role in ("train", "valid", "test")}
    if not spans["valid"] and fractions[1] > 0:
        held_out = max(1, round(fractions[1] * len(spans["train"])))
        spans["train"], spans["valid"] = spans["train"][:-held_out], spans["train"][-held_out:]
    return Spans(**spans)


def published(
    trajectories: Trajectories, num_context: int, num_forecast: int, crops: int
) -> list[np.ndarray]:
    """TF-Net's index split: (start frame, crop) of every sample for training, validation and testing, [n, 2].

    Windows of different splits share up to 99 frames: forecasts of its test split are seen in training. It is
    here to compare with published scores. The first forecast frame is frame 40 of a sample, as there.

    Raises:
      ValueError: the data are not one trajectory of at least 1499 frames with seven crops.
    """
    before, after = PUBLISHED_TARGET, PUBLISHED_FRAMES - PUBLISHED_TARGET
    if num_context > before or num_forecast > after:
        raise ValueError(
            f'split "published": its samples have room for {before} context and {after} forecast frames, '
            f"found {num_context} and {num_forecast}"
        )
    needed = PUBLISHED_BOUNDS[-1] // PUBLISHED_CROPS - 1 + PUBLISHED_FRAMES
    lengths = [len(array) for array in trajectories.arrays]
    if len(lengths) != 1 or lengths[0] < needed or crops != PUBLISHED_CROPS:
        raise ValueError(
            f'split "published": expected one trajectory of at least {needed} frames and {PUBLISHED_CROPS} '
            f'crops, found trajectories of {lengths} frames and {crops} crops; use "time" or "trajectory"'
        )
    samples = [np.arange(*bounds) for bounds in itertools.pairwise(PUBLISHED_BOUNDS)]
    first = PUBLISHED_TARGET - num_context
    return [np.stack([ids // PUBLISHED_CROPS + first, ids % PUBLISHED_CROPS], axis=1) for ids in samples]


def _whole(trajectories: Trajectories) -> list[Span]:
    return [Span(number, 0, len(array)) for number, array in enumerate(trajectories.arrays)]
