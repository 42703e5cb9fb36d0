"""Weak scaling on paper: plans for sizes B and XL over 8 to 512 devices with a constant batch per device, as tables.

    python -m benchmarks.weak_scaling --out=results/plan

Each plan is ``--mode=plan`` in a process of its own, about a minute on one idle core; one whose plan.json is there is
not made again. Writes OUT/SIZE-DEVICES/plan.json and OUT/table.md.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from dydiff_jax.cost_model.text import size as in_bytes

DEVICES = (8, 16, 32, 64, 128, 256, 512)
#: Windows for each device, and what the backward pass keeps.
SIZES = {"B": (4, "dots"), "XL": (1, "full")}


def command(size: str, devices: int, out: pathlib.Path) -> list[str]:
    """The command line of one plan."""
    batch, remat = SIZES[size]
    return [
        *("-m", "dydiff_jax.main", f"--config=configs/turbulence.py:dynamical,size={size}", "--mode=plan"),
        *(
            f"--devices={devices}",
            f"--workdir={out / f'{size}-{devices}'}",
            "--config.networks.denoiser.dtype=bfloat16",
        ),
        *(
            f"--config.networks.denoiser.remat={remat}",
            "--config.mesh.fsdp=8",
            f"--config.train.batch_size={batch * devices}",
        ),
    ]


def program_row(devices: int, plan: dict) -> str:
    """Mesh, memory, arithmetic and transfers of one device."""
    stage = plan["stages"]["denoiser"]
    step = stage["programs"]["CPU"]
    sums = {
        kind: sum(c["bytes"] for c in step["collectives"] if c["kind"] == kind)
        for kind in ("all-gather", "all-reduce")
    }
    cells = (
        devices,
        " x ".join(str(plan["mesh"][axis]) for axis in ("data", "fsdp", "tensor")),
        *(in_bytes(step[name]) for name in ("parameters", "state", "temporaries", "peak")),
        f"{step['flops'] / 1e12:.4g}",
        f"{step['flops'] * devices / stage['model_flops']:.3g}",
        *(in_bytes(count) for count in sums.values()),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def device_row(devices: int, name: str, row: dict) -> str:
    """The roofline of one named device."""
    cells = (
        devices,
        name,
        "yes" if row["fits"] else "no",
        *(in_bytes(row[part]) for part in ("link_bytes", "outside_bytes")),
        *(f"{1e3 * row[part]:.3g}" for part in ("compute", "traffic", "network")),
        "{:.3g} to {:.3g}".format(*(1e3 * seconds for seconds in row["step"])),
        row["bound"],
        "{1:.0f} to {0:.0f}".format(*(100 * share for share in row["mfu"])),
        "{1:.0f} to {0:.0f}".format(*row["examples_per_second"]),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def tables(plans: dict[tuple[str, int], dict]) -> str:
    """All plans as Markdown."""
    lines = []
    for size in SIZES:
        found = {devices: plan for (name, devices), plan in plans.items() if name == size}
        lines += [f"## Size {size}, for each device", ""]
        lines += [
            "| devices | data x fsdp x tensor | parameters | train state | temporaries | peak | TFLOPs a step |"
        ]
        lines[-1] += " times the model's share | all-gather | all-reduce |"
        lines += ["| ---: | --- |" + " ---: |" * 8]
        lines += [program_row(devices, plan) for devices, plan in found.items()]
        lines += ["", f"## Size {size}, predicted", ""]
        lines += [
            "| devices | device | fits | bytes a link | bytes a port between nodes or pods | compute, ms |"
        ]
        lines[-1] += " traffic, ms | network, ms | step, ms | bound by | MFU, % | examples a second |"
        lines += ["| ---: | --- | --- |" + " ---: |" * 6 + " --- | ---: | ---: |"]
        for name in next(iter(found.values()))["stages"]["denoiser"]["predictions"]:
            lines += [
                device_row(devices, name, plan["stages"]["denoiser"]["predictions"][name])
                for devices, plan in found.items()
            ]
        lines += [""]
    return "\n".join(lines)


def main() -> None:
    """Makes the plans that are missing, then the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/plan"))
    out = parser.parse_args().out
    plans = {}
    for size in SIZES:
        for devices in DEVICES:
            path = out / f"{size}-{devices}" / "plan.json"
            if not path.exists():
                subprocess.run([sys.executable, *command(size, devices, out)], check=True)
            plans[size, devices] = json.loads(path.read_text())
    (out / "table.md").write_text(tables(plans), encoding="utf-8")


if __name__ == "__main__":
    main()
