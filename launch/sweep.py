"""Make the runs of a comparison one by one or as jobs of SLURM: a grid of config values, a work directory each.

    python launch/sweep.py --config=configs/turbulence.py:size=tiny --methods=dynamical --seeds=0,1 \\
        --sweep=system.process.eta=0.2,0.5 --workdir=runs/sweep [--config.train.steps=3000 ...]

The flags are those of ``dydiff_jax.compare``, which reads what is made here: with the same flags it writes the report.
A run goes to ``WORKDIR/METHOD/KEY=value,.../seed_S``. Runs that are finished, with all scores, are skipped, so
re-running the command resumes it.

Swept values are scored on the validation split. Once all are, the value with the lowest CRPS there is chosen for each
method, and scored on the test split.

``--via=local`` makes one run after the other; ``--via=slurm`` submits each with launch/slurm.sh, where a second job of
a run waits for the first. ``--dry-run`` prints the commands. Options that are free at evaluation, such as those of a
sampler, are evaluated without training again; through SLURM, evaluations and the chosen values are submitted once the
runs that they need are finished.

Exits with 0 when all is done, 1 when runs failed (the others were made; no value is chosen then), 75 when it was
stopped.
"""

import argparse
import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

from dydiff_jax import compare
from dydiff_jax.comparison import results, schedule, selection
from dydiff_jax.runs import exit_codes

LAUNCH = pathlib.Path(__file__).resolve().parent


def main(argv: Sequence[str]) -> int:
    """Check every point of the grid, then make those that are not done; returns the exit status."""
    arguments, overrides = parser().parse_known_args(argv)
    sys.path.insert(0, str(LAUNCH.parent))  # a config file imports configs.base
    try:
        request = schedule.Request.parse(
            arguments.config,
            arguments.methods,
            arguments.seeds,
            arguments.sweep,
            compare.overrides(overrides),
            arguments.workdir,
        )
        planned = schedule.make(request, compare.read)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    fixed = planned.tested(())
    status = make([*planned.searched, *fixed], arguments)
    folders = [run.evaluation() for run in planned.searched]
    if status or not folders:
        return status
    if not all(folders):
        say(
            "run again once all swept values are scored on the validation split: the test split is scored then"
        )
        return 0
    chosen = choose(planned.searched, folders, request.workdir)
    say(f"chosen on the validation split: {'; '.join(chosen)}")
    return make([run for run in planned.tested(chosen) if run not in fixed], arguments)


def choose(runs: Sequence[schedule.Run], folders: Sequence[pathlib.Path], home: pathlib.Path) -> list[str]:
    """Labels of the points with the lowest CRPS on the validation split, one for each method.

    Args:
      runs: every point and seed.
      folders: of their evaluations.
      home: directory of the sweep.
    """
    points = [
        results.entry_of(run, folder) for run, folder in zip(runs, folders, strict=True) if run.reported
    ]
    return selection.chosen(selection.select(points, home))


def make(runs: Sequence[schedule.Run], arguments: argparse.Namespace) -> int:
    """Make, submit or print the runs that are not done; returns the exit status."""
    todo = [run for run in runs if run.evaluation() is None]
    say(f"{len(runs)} runs, {len(runs) - len(todo)} done")
    if arguments.via == "slurm":
        return submit(todo, shlex.split(arguments.sbatch), arguments.dry_run)
    if arguments.dry_run:
        for run in todo:
            print(run.command)
        return 0
    return run_all(todo)


def parser() -> argparse.ArgumentParser:
    """The arguments, but for ``--config.key=value``."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--config", required=True, help="FILE[:key=value,...], without a method")
    made.add_argument("--methods", required=True, help="dynamical,standard")
    made.add_argument("--workdir", required=True, help="directory of the sweep")
    made.add_argument("--seeds", default="0,1", help="of training")
    made.add_argument(
        "--sweep", action="append", default=[], metavar="SECTION.KEY=value,...", help="several: the product"
    )
    made.add_argument("--via", choices=["local", "slurm"], default="local")
    made.add_argument("--sbatch", default="", help="options of sbatch, in one string")
    made.add_argument("--dry-run", action="store_true", help="print the commands")
    return made


def run_all(runs: Sequence[schedule.Run]) -> int:
    """Make one run after the other, each in a process of its own; pass SIGTERM on to it."""
    failed, stopped = [], []
    for i, run in enumerate(runs):
        say(f"[{i + 1} of {len(runs)}] {run.command}")
        with subprocess.Popen([sys.executable, *shlex.split(run.command)[1:]]) as process:
            signal.signal(signal.SIGTERM, lambda *_, process=process: stopped.append(process.terminate()))
            status = process.wait()
        if stopped or status == exit_codes.STOPPED:
            say("stopped: re-run the command to resume")
            return exit_codes.STOPPED
        if status:
            failed.append(f"status {status}: {run.command}")
    for line in failed:
        say(line)
    return 1 if failed else 0


def submit(runs: Sequence[schedule.Run], options: Sequence[str], dry_run: bool) -> int:
    """Submit a job for each run; jobs of one directory never run at the same time."""
    waiting = {run.directory for run in runs if run.trains}
    for run in runs:
        if not run.trains and run.directory in waiting:
            say(f"submit again once {run.directory} is finished: {run.name}")
            continue
        flags = shlex.split(run.command)[3:]  # behind python -m dydiff_jax.main
        name = f"--job-name={run.directory}"
        command = ["sbatch", name, "--dependency=singleton", *options, str(LAUNCH / "slurm.sh"), *flags]
        if dry_run:
            print(shlex.join(command))
        else:
            subprocess.run(command, check=True)
    return 0


def say(text: str) -> None:
    """Print to stderr, beside the commands that a dry run prints."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
