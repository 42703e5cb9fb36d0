"""A long run stays as large as it was, and compiles nothing on the way."""

import json
import pathlib
import subprocess
import sys

import pytest
from running import ENVIRONMENT

STEPS = 5000

#: Trains the toy and prints, for every hundredth step, the resident memory in pages and the programs compiled.
SOAK = """
import json, sys
import jax
import toy
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.training import loop

seen, compiled = [], []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
)
made = toy.make_examples()

def watched(first, wanted):
    for step, batch in enumerate(made.stream(first, wanted), first):
        if step % 100 == 0 or step == 3:
            pages = int(open("/proc/self/statm").read().split()[1])
            seen.append((step, pages, len(compiled)))
        yield batch

stage = toy.make_stage(steps=int(sys.argv[2]), log_every=50, checkpoint_every=500)
session = toy.session(sys.argv[1], meshes.make_mesh(meshes.MeshOptions(data=2, fsdp=2, tensor=2)))
loop.train(stage, {}, made._replace(stream=watched), session, fingerprint="abc")
print(json.dumps(seen))
"""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="reads resident memory from /proc")
def test_5000_steps_grow_by_less_than_5_percent_and_compile_nothing(tmp_path):
    here = pathlib.Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", SOAK, str(tmp_path), str(STEPS)],
        cwd=here, capture_output=True, text=True, timeout=300, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen = {step: (pages, compiled) for step, pages, compiled in json.loads(done.stdout.splitlines()[-1])}
    assert seen[STEPS - 100][1] == seen[3][1] > 0, "a program was compiled after the second step"
    # What the first checkpoints set up counts as the size of the run.
    growth = seen[STEPS - 100][0] / seen[1100][0] - 1
    assert growth < 0.05, {step: pages for step, (pages, _) in seen.items()}
