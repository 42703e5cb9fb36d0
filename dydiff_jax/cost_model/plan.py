"""What a training run would need and how fast it could be, without the devices: ``--mode=plan``.

The train step is compiled for a mesh of any size with no data made and no parameter allocated: for a TPU by its own
compiler, where libtpu is installed, else for as many virtual CPU devices. What is printed of memory, arithmetic and
collectives is read off that program.
"""

import dataclasses
import importlib.util
import math
import os
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from dydiff_jax import build
from dydiff_jax.build import Config, Run
from dydiff_jax.cost_model import hlo, roofline, text, traffic, work
from dydiff_jax.cost_model.devices import DEVICES, Device
from dydiff_jax.cost_model.hlo import Collective
from dydiff_jax.data.card import DataCard
from dydiff_jax.distributed import global_batch
from dydiff_jax.distributed import mesh as meshes
from dydiff_jax.models.network import NetworkOptions
from dydiff_jax.runs import files
from dydiff_jax.system import Stage, Weights
from dydiff_jax.training import state
from dydiff_jax.types import Batch

#: Little code generation, which nobody runs, and the order of instructions that needs the least memory.
CPU_COMPILER = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


@dataclasses.dataclass(frozen=True)
class Step:
    """The compiled train step, per device.

    Attributes:
      parameters: bytes of parameters.
      state: bytes of the train state: parameters, moments, EMA, counters.
      frozen: bytes of the weights of other stages.
      batch: bytes of its part of the batch.
      temporaries: bytes that live within a step: activations, gradients, gathered parameters.
      peak: bytes of all of these together.
      flops: of matrix products and convolutions.
      traffic: bytes between the device and its memory.
      collectives: what it exchanges with others.
    """

    parameters: int
    state: int
    frozen: int
    batch: int
    temporaries: int
    peak: int
    flops: int
    traffic: int
    collectives: list[Collective]


def prepare(devices: int) -> None:
    """Makes so many virtual CPU devices; to be called before jax first looks for devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def plan(
    raw: ml_collections.ConfigDict,
    devices: int,
    hardware: str | None = None,
    directory: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Compiles the train step for devices that are not here, and prints what it needs of each.

    Args:
      raw: the config.
      devices: how many there are; the number that `prepare` was called with.
      hardware: a name of `DEVICES`; all of them if None.
      directory: where plan.json is written, if anywhere.

    Returns:
      What plan.json holds.

    Raises:
      ValueError: an unknown device, a mesh that does not fit the devices, or a batch that the mesh does not divide.
    """
    if hardware is not None and hardware not in DEVICES:
        raise ValueError(f"hardware: expected one of {sorted(DEVICES)}, found {hardware!r}")
    config = build.load(raw)
    mesh = virtual_mesh(config, devices)
    card = build.spec_card(config)
    for stage in build.build(config, card).stages:
        global_batch.check_batch(stage.recipe.train.batch_size, mesh)
    found = {
        "method": config.method,
        "size": config.size,
        "dtype": dtype_of(config),
        "devices": devices,
        "mesh": dict(mesh.shape),
        "stages": {
            name: plan_stage(config, card, name, mesh, [hardware] if hardware else list(DEVICES), needed)
            for name, needed in needed_flops(config, card).items()
        },
    }
    print(text.text(found), flush=True)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        files.write_json(directory / "plan.json", found)
    return found


def plan_stage(
    config: Config, card: DataCard, name: str, mesh: Mesh, hardware: Sequence[str], needed: int
) -> dict[str, Any]:
    """What the step of one stage needs on each kind of hardware, as plan.json holds it."""
    programs: dict[str, Step] = {}
    predictions = {}
    for kind in hardware:
        topology = tpu_topology(DEVICES[kind], mesh.size)
        compiler = f"TPU {topology}" if topology else "CPU"
        chosen = config if topology else with_networks(config, lambda options: options.on_cpu())
        run = build.build(chosen, card)
        stage = next(stage for stage in run.stages if stage.name == name)
        if compiler not in programs:
            print(
                f"compiling the train step of stage {name} for {mesh.size} devices with XLA:{compiler} ...",
                flush=True,
            )
            programs[compiler] = compile_step(run, stage, tpu_mesh(mesh, topology) if topology else mesh)
        predictions[kind] = predict(programs[compiler], DEVICES[kind], config, stage, needed, mesh.size) | {
            "program": compiler
        }
    return {
        "batch_size": stage.recipe.train.batch_size,
        "model_flops": needed,
        "programs": {key: summary(step, mesh) for key, step in programs.items()},
        "predictions": predictions,
    }


def virtual_mesh(config: Config, devices: int) -> Mesh:
    """The mesh of a config over virtual CPU devices.

    Raises:
      ValueError: it does not fit them, or `prepare` was not called in time.
    """
    if jax.device_count() != devices:
        raise ValueError(
            f"devices: expected {jax.device_count()}, since jax started with as many, found {devices}; call "
            "plan.prepare first, in a process of its own"
        )
    mesh = meshes.make_mesh(config.mesh)
    if mesh.size != devices:
        raise ValueError(
            f"config.mesh: {dict(mesh.shape)} takes {mesh.size} of {devices} devices; make the product of its axes "
            f"{devices}, or set data=-1"
        )
    return mesh


def tpu_topology(device: Device, devices: int) -> str | None:
    """The slice of a TPU pod with so many chips, as ``v5e:4x4``; None where libtpu or such a slice is missing."""
    links = device.interconnect
    if not links.dimensions or devices > links.domain or importlib.util.find_spec("libtpu") is None:
        return None
    return f"{device.name}:" + "x".join(map(str, links.torus(devices)))


def tpu_mesh(mesh: Mesh, topology: str) -> Mesh:
    """A mesh of the same shape over the chips of a slice, of which libtpu knows enough to compile."""
    # libtpu would ask a TPU's metadata server, and end the process
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    return jax.make_mesh(tuple(mesh.shape.values()), mesh.axis_names, axis_types=kinds, devices=chips)


def abstract_batch(run: Run, stage: Stage) -> Batch:
    """The shape of a batch of training windows."""
    spec, window, rows = run.card.spec, run.config.window, stage.recipe.train.batch_size

    def shape(*axes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *axes), jnp.float32)

    count = window.num_frames if stage.frames is None else stage.frames.count
    return Batch(
        shape(count, *spec.frame_shape),
        forcings=shape(count, len(spec.forcings)) if spec.forcings else None,
        static=shape(*spec.frame_shape[:-1], len(spec.static)) if spec.static else None,
        at=None if stage.frames is None else jax.ShapeDtypeStruct((rows, count), jnp.int32),
    )


def frozen_shapes(run: Run, stage: Stage) -> Weights:
    """The shapes of the weights of the stages that a stage needs."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return {
        other.name: jax.eval_shape(other.objective.init, key)
        for other in run.stages
        if other.name in stage.needs
    }


def needed_flops(config: Config, card: DataCard, names: Collection[str] | None = None) -> dict[str, int]:
    """Arithmetic of the model of each stage for one batch: forward and backward, nothing computed twice.

    Args:
      config: of the run.
      card: of its data.
      names: of the stages that are counted; None: all.
    """
    run = build.build(with_networks(config, lambda options: options.uncached()), card)
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = {}
    for stage in run.stages:
        if names is not None and stage.name not in names:
            continue
        params = jax.eval_shape(stage.objective.init, key)
        step = jax.value_and_grad(stage.objective.loss, has_aux=True)
        arguments = params, frozen_shapes(run, stage), abstract_batch(run, stage), key
        found[stage.name] = work.model_flops(step, *arguments)
    return found


def with_networks(config: Config, change: Callable[[NetworkOptions], NetworkOptions]) -> Config:
    """The config with other options of every network."""
    networks = {role: change(options) for role, options in config.networks.items()}
    return dataclasses.replace(config, networks=networks)


def compile_step(run: Run, stage: Stage, mesh: Mesh) -> Step:
    """Compile the train step of a stage for a mesh of virtual CPU devices, or of described TPU chips; read the program.

    ``run`` is built for the platform of the mesh.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    with jax.set_mesh(mesh):
        abstract = state.abstract_state(stage.objective, stage.recipe, mesh)
        frozen = {
            other.name: meshes.abstract_params(other.objective.init, mesh, other.objective.rules)
            for other in run.stages
            if other.name in stage.needs
        }
        step = state.make_train_step(stage.objective, stage.recipe, abstract, frozen)
        lowered = step.lower(abstract, frozen, abstract_batch(run, stage))
        compiled = lowered.compile(compiler_options=CPU_COMPILER if on_cpu else None)
    memory, program = compiled.memory_analysis(), compiled.as_text()
    parameters, whole = shard_bytes(abstract.params), shard_bytes(abstract)
    moved = traffic.traffic(program)
    if on_cpu:  # the products, the state read and written, gradients written and read
        itemsize = jnp.dtype(dtype_of(run.config)).itemsize
        moved = traffic.products(program, itemsize) + 2 * (whole + parameters)
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    others = shard_bytes(frozen)
    return Step(
        parameters=parameters,
        state=whole,
        frozen=others,
        batch=memory.argument_size_in_bytes - whole - others,
        temporaries=memory.temp_size_in_bytes,
        peak=used + memory.temp_size_in_bytes,
        flops=hlo.flops(program),
        traffic=moved,
        collectives=hlo.collectives(program),
    )


def dtype_of(config: Config) -> str:
    """The dtype of activations and products of the networks."""
    return next(iter(config.networks.values())).dtype


def shard_bytes(tree: Any) -> int:
    """Bytes of one device's part of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def summary(step: Step, mesh: Mesh) -> dict[str, Any]:
    """A program as plan.json holds it, with its collectives summed by kind, mesh axes and dtype."""
    values = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    sums: dict[tuple[str, str, str], list[int]] = {}
    for collective in step.collectives:
        key = (collective.kind, spread(collective.groups[0], mesh), collective.dtype)
        entry = sums.setdefault(key, [0, 0])
        entry[0] += collective.count
        entry[1] += collective.count * collective.bytes
    values["collectives"] = [
        {"kind": kind, "axes": axes, "dtype": dtype, "count": count, "bytes": size}
        for (kind, axes, dtype), (count, size) in sorted(sums.items())
    ]
    return values


def spread(group: tuple[int, ...], mesh: Mesh) -> str:
    """The mesh axes along which a group of devices varies."""
    places = np.unravel_index(np.asarray(group), tuple(mesh.shape.values()))
    return "+".join(
        axis for axis, place in zip(mesh.shape, places, strict=True) if len(set(place.tolist())) > 1
    )


def predict(
    step: Step, device: Device, config: Config, stage: Stage, needed: int, devices: int
) -> dict[str, Any]:
    """The roofline of one device, in seconds, and what follows from it; pairs are perfect overlap and none."""
    line = roofline.roofline(device, dtype_of(config), step.flops, step.traffic, step.collectives, devices)
    times = (line.overlapped, line.serial)
    peak, links = device.peak(dtype_of(config)), device.interconnect
    return {
        "memory": device.memory,
        "fits": step.peak <= device.memory,
        "compute": line.compute,
        "traffic": line.memory,
        "network": line.network,
        "link_bytes": line.inside * links.link,
        "outside_bytes": line.outside * links.outside,
        "bound": line.bound,
        "step": times,
        "mfu": tuple(roofline.utilisation(needed, devices, peak, seconds) for seconds in times),
        "examples_per_second": tuple(stage.recipe.train.batch_size / seconds for seconds in times),
    }
