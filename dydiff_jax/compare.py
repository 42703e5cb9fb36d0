"""Which schedule forecasts these data best, at equal cost? One command trains, evaluates and compares.

    python -m dydiff_jax.compare --config=configs/turbulence.py:size=tiny --methods=standard,dynamical,rolling \\
        --seeds=0,1 --workdir=DIR

The config is that of ``dydiff_jax.main`` without a method. Every method is a run in ``DIR/METHOD/seed_S``, or
``DIR/METHOD/SWEEP/seed_S`` with ``--sweep=system.process.eta=0.3,0.7``: the value is chosen by the CRPS on the
validation split, and the chosen one is scored on the test split. Re-running the command resumes it.
"""

import functools
import pathlib
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from dydiff_jax.comparison import blocks, report, results, schedule, selection
from dydiff_jax.config import plain
from dydiff_jax.data import cache
from dydiff_jax.distributed import cluster, collectives
from dydiff_jax.evaluation import plots
from dydiff_jax.metrics import Diverged
from dydiff_jax.runs import commands, exit_codes, files, sharing
from dydiff_jax.runs import directory as run_directory

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "A file of configs/, with its argument but for the method: configs/turbulence.py:size=tiny.",
)
_METHODS = flags.DEFINE_string("methods", None, "What is compared: standard,dynamical,rolling.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the comparison: runs, report.md, report.html.")
_SEEDS = flags.DEFINE_string("seeds", "0,1", "Seeds of training.")
_SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    "SECTION.KEY=value,...: the best value by validation is scored on the test split; several sweeps make the product.",
)
_ALSO = flags.DEFINE_list("also", [], "Directories of finished runs to add to the report.")

TITLE = "Comparison of {}"


def main(argv: list[str]) -> None:
    """Check everything that was asked for, then run it and write the report."""
    jax.config.update("jax_compilation_cache_dir", str(cache.cache_root(None) / "compiled"))
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the libraries beneath report every file at INFO
    command = shlex.join(["python", "-m", "dydiff_jax.compare", *sys.argv[1:]])
    with collectives.exit_on_user_error():
        cluster.start()
        request = schedule.Request.parse(
            _CONFIG.value, _METHODS.value, _SEEDS.value, _SWEEP.value, overrides(argv[1:]), _WORKDIR.value
        )
        planned = schedule.make(request, read)
        others = results.elsewhere(_ALSO.value)
        if jax.process_count() == 1:  # training takes the signal itself, and saves first
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(exit_codes.STOPPED))
        compare(planned, others, request.workdir, command)


def compare(
    planned: schedule.Plan, others: Sequence[results.Entry], home: pathlib.Path, command: str
) -> None:
    """Make every run and, after each seed of the runs on the test split, the report of what is done.

    Args:
      planned: the runs.
      others: finished runs from elsewhere.
      home: directory of the comparison.
      command: the shell line that repeats it.

    A run that diverges is left out, and the report says so.

    Raises:
      ValueError: the directory of a run holds another config; nothing was run.
      FloatingPointError: runs diverged; the report of the others is written.
    """
    for run in planned.runs:
        if run.trains and collectives.on_main((run.directory / "config.json").exists):
            run_directory.create_or_verify(run.directory, plain(run.raw))
    notes = [f"`{key}` applies to {', '.join(methods)} alone." for key, methods in planned.partial.items()]
    series = _Series(len(planned.searched) + planned.num_tested)
    points = [entry for entry in map(series.make, planned.searched) if entry]
    validation = collectives.on_main(lambda: selection.select(points, home)) if points else None
    runs = planned.tested(selection.chosen(validation) if validation else ())
    entries: list[results.Entry] = []
    for i, run in enumerate(runs):
        entry = series.make(run)
        entries += [entry] if entry else []
        last = run is runs[-1] or runs[i + 1].seed != run.seed
        if last and entries:
            said = [*notes, *series.failed.values()]
            report = functools.partial(write, [*entries, *others], home, command, said, validation)
            collectives.on_main(report)
    if series.failed:
        raise FloatingPointError("\n".join(series.failed.values()))
    collectives.print_main(f"{home}: report.html, report.md, comparison.json and figures")


class _Series:
    """Make runs one after the other, and continue after one that diverges; a stage of several runs is trained once.

    Attributes:
      failed: {what is not tried again, a run's directory or with it the label of an evaluation: why}.
    """

    def __init__(self, total: int):
        self.failed: dict[tuple[pathlib.Path, str], str] = {}
        self._total, self._number = total, 0
        self._trained: list[pathlib.Path] = []

    def make(self, run: schedule.Run) -> results.Entry | None:
        """The evaluation of a run, or None where it diverged or only serves others."""
        self._number += 1
        collectives.print_main(
            f"[{self._number} of {self._total}] {run.name}: {run.task}, in {run.directory}"
        )
        trained, evaluated = (run.directory, ""), (run.directory, run.label)
        if trained in self.failed or evaluated in self.failed:
            return None
        if run.trains:
            sharing.take_over(run.raw, run.directory, self._trained)
            self._trained.append(run.directory)
        call = commands.train if run.trains else commands.evaluate_run
        try:
            folder = call(run.raw, run.directory, run.command, split=run.split)
        except (FloatingPointError, Diverged) as error:
            why = f"{run.name} diverged and is left out: {error}"
            self.failed[trained if run.trains else evaluated] = why
            collectives.print_main(why)
            return None
        return results.entry_of(run, folder) if run.reported else None


def write(
    entries: Sequence[results.Entry],
    home: pathlib.Path,
    command: str,
    notes: Sequence[str],
    validation: Mapping[str, Any] | None = None,
) -> None:
    """Write comparison.json, the figures and both reports.

    Args:
      entries: what is compared, in the order of the rows.
      home: directory of the comparison.
      command: the shell line that repeats it.
      notes: sentences on what the runs have in common.
      validation: what `selection.select` made of a sweep.
    """
    found = results.compare(entries, home, command) | {"notes": list(notes), "validation": validation}
    files.write_json(home / "comparison.json", found)
    figures = plots.compare_all(home)
    title = TITLE.format(", ".join(dict.fromkeys(group["method"] for group in found["groups"])))
    parts = report.blocks(found, figures, home)
    files.write_text(home / "report.md", blocks.markdown(title, parts))
    files.write_text(home / "report.html", blocks.page(title, parts))


def read(argument: str, changes: Sequence[str]) -> ml_collections.ConfigDict:
    """Read the config of ``FILE:argument`` with ``--config.key=value``, as the command line of a run does.

    Raises:
      ValueError: the argument, a key or a value is wrong.
    """
    values = flags.FlagValues()
    argv = ["compare", f"--config={argument}", *changes]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        return holder.value
    except (flags.Error, AttributeError, KeyError) as error:
        raise ValueError(f"--config={argument}: {str(error).strip().splitlines()[-1]}") from error


def overrides(arguments: Sequence[str]) -> list[str]:
    """``key=value`` of every ``--config.key=value``.

    Raises:
      ValueError: an argument is something else.
    """
    for argument in arguments:
        if not argument.startswith("--config.") or "=" not in argument:
            raise ValueError(f"expected --config.key=value, found the argument {argument!r}")
    return [argument.removeprefix("--config.") for argument in arguments]


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the flags but for ``--config.key=value``, which are returned with what is left."""
    changes = [argument for argument in argv if argument.startswith("--config.")]
    rest = app.parse_flags_with_usage([argument for argument in argv if argument not in changes])
    return [*rest, *changes]


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "methods", "workdir"])
    app.run(main, flags_parser=parse_flags)
