"""Why a score has no meaning for some data: a reason, or None."""

from collections.abc import Callable

from dydiff_jax.evaluation.scores.options import ScoreOptions

#: (options, frame [h, w, c]) to a reason in one line, or None.
Refuse = Callable[[ScoreOptions, tuple[int, ...]], str | None]


def window(name: str) -> Refuse:
    """Refuse a window, an option of this name, that is larger than the grid."""

    def refuse(options: ScoreOptions, frame: tuple[int, ...]) -> str | None:
        side = getattr(options, name)
        if min(frame[:2]) >= side:
            return None
        return (
            f"{name}: expected at most the shorter side of the grid of {frame[0]} x {frame[1]}, found {side}"
        )

    return refuse


def no_grid(options: ScoreOptions, frame: tuple[int, ...]) -> str | None:
    """A spectrum needs a grid."""
    if min(frame[:2]) > 1:
        return None
    return f"frame: expected a grid of 2 x 2 points or more for a spectrum, found {frame[0]} x {frame[1]}"


def no_distance(options: ScoreOptions, frame: tuple[int, ...]) -> str | None:
    """A Frechet spectral distance needs a number of samples, its field and a grid."""
    if options.fsd_samples is None:
        return "fsd_samples: expected a number of frames, found None"
    if options.fsd_field >= frame[-1]:
        return f"fsd_field: expected a channel below {frame[-1]}, found {options.fsd_field}"
    return no_grid(options, frame)


def no_flow(options: ScoreOptions, frame: tuple[int, ...]) -> str | None:
    """The spectra of a flow need the channels u and v and a grid."""
    if not options.flow:
        return "flow: expected True, which says that the channels are u and v, found False"
    if frame[-1] != 2:
        return f"flow: expected the two channels u and v, found {frame[-1]}; set it to False"
    return no_grid(options, frame)


def no_scale(options: ScoreOptions, frame: tuple[int, ...]) -> str | None:
    """A scaled error needs its scale."""
    return "mse_scale: expected a number, found None" if options.mse_scale is None else None
