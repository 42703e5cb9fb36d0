"""The cost model's results as text for the terminal."""

from typing import Any

#: Caveats of the figures, by compiler.
CAVEATS = {
    "CPU": (
        "XLA:CPU made this program for virtual devices. FLOPs are those of any compiler. Memory is an estimate, often "
        "high: it fuses less. Memory traffic is a lower bound: matrix products and train state. A reduce-scatter "
        "appears as an all-reduce and a slice. bfloat16 is compiled as float16, which XLA:CPU does not widen."
    ),
    "TPU": "The TPU's own compiler made this program, without the TPU.",
}
ROW = "{:<8}{:<21}{:>10}{:>10}{:>10}{:>20}  {:<9}{:>14}{:>22}"
ROOFLINE = (
    "A step takes between the longest of compute, memory and network (perfect overlap) and their sum (none), each at "
    "its peak rate; real steps are slower. MFU counts what the model needs, without recomputation."
)


def size(count: float) -> str:
    """Format a number of bytes."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def text(found: dict[str, Any]) -> str:
    """Format the contents of plan.json."""
    mesh = " ".join(f"{axis}={count}" for axis, count in found["mesh"].items())
    lines = [
        f"{found['method']}, size {found['size']}, {found['dtype']}: {found['devices']} devices, mesh {mesh}"
    ]
    for name, stage in found["stages"].items():
        share = stage["model_flops"] / found["devices"]
        lines += [
            "",
            f"stage {name}, batch {stage['batch_size']}: the model needs {stage['model_flops']:.4g} FLOPs a step, "
            f"{share:.4g} a device",
        ]
        for compiler, step in stage["programs"].items():
            lines += ["", f"XLA:{compiler}, for each device", *program(step, share)]
            lines += [f"  {CAVEATS[compiler.partition(' ')[0]]}"]
        lines += ["", *table(stage["predictions"])]
    return "\n".join([*lines, ROOFLINE])


def program(step: dict[str, Any], needed: float) -> list[str]:
    """Lines for one compiled program."""
    rows = [
        ("parameters", step["parameters"]),
        ("train state", step["state"]),
        *([("frozen weights", step["frozen"])] if step["frozen"] else []),
        ("batch", step["batch"]),
        ("temporaries", step["temporaries"]),
        ("all at the peak", step["peak"]),
        ("memory traffic", step["traffic"]),
    ]
    lines = [f"  {name:<18}{size(value):>9}" for name, value in rows]
    lines += [f"  {'FLOPs':<18}{step['flops']:>9.3g}  {step['flops'] / needed:.3g} times the model's share"]
    for row in step["collectives"]:
        name = f"{row['kind']} over {row['axes'] or 'no axis'}"
        lines += [f"  {name:<34}{row['dtype']:<5}{row['count']:>6} times, {size(row['bytes']):>9} in all"]
    return lines


def table(predictions: dict[str, dict[str, Any]]) -> list[str]:
    """Lines with the roofline of each device."""
    columns = ("ms", "memory", "compute", "traffic", "network", "step", "bound by", "MFU, %", "examples/s")
    lines = [ROW.format(*columns)]
    for name, row in predictions.items():
        fits = "fits" if row["fits"] else "does not fit"
        cells = (
            f"{fits} {size(row['memory'])}",
            *(f"{1e3 * row[part]:.4g}" for part in ("compute", "traffic", "network")),
            "{:.4g} to {:.4g}".format(*(1e3 * seconds for seconds in row["step"])),
            row["bound"],
            "{1:.3g} to {0:.3g}".format(*(100 * share for share in row["mfu"])),
            "{1:.4g} to {0:.4g}".format(*row["examples_per_second"]),
        )
        lines.append(ROW.format(name, *cells))
    return lines
