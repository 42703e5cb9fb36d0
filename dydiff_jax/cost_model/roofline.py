"""Roofline of a step: arithmetic, memory traffic and communication, each at its peak rate.

    compute = FLOPs / peak,    memory = bytes / bandwidth,    network = sum over collectives of count * time

A step takes at least the longest of the three, if they overlap perfectly, and at most their sum (Williams et al. 2009,
"Roofline"). Latency and software overhead are not modelled: real steps are slower.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from dydiff_jax.cost_model.devices import Device, Interconnect
from dydiff_jax.cost_model.groups import Groups
from dydiff_jax.cost_model.hlo import Collective


def on_the_wire(collective: Collective) -> float:
    """Bytes that each device sends in one execution of a collective over a ring of n devices.

    all-gather, reduce-scatter, all-to-all: (n - 1)/n * bytes
    all-reduce: 2 (n - 1)/n * bytes, a reduce-scatter and an all-gather
    collective-permute: bytes
    """
    if collective.kind == "collective-permute":
        return float(collective.bytes)
    n = collective.group_size
    return (2 if collective.kind == "all-reduce" else 1) * (n - 1) / n * collective.bytes


def bandwidth(interconnect: Interconnect, group: Sequence[int], devices: int) -> float:
    """Bytes/s at which each device of a group sends around its ring.

    Devices are numbered row by row in the mesh, and in the same order in nodes or on the torus. Within a domain the
    bandwidth is that of the port to the switch, or the sum over the torus axes along which the group extends of

        link * (2 where the group fills an axis that closes to a ring, else 1) / stride

    with the stride between neighbours of the group on that axis: interleaved groups share its links. A ring across
    domains uses the network ports of the m members in each domain, so that m * outside is an upper bound.
    """
    members = np.asarray(group)
    domains = members // interconnect.domain
    within = members[domains == domains[0]] % interconnect.domain
    inside = _torus_bandwidth(interconnect, within, devices) if interconnect.dimensions else interconnect.link
    if np.all(domains == domains[0]):
        return inside
    outside = len(within) * interconnect.outside
    return min(inside, outside) if len(within) > 1 else outside


def _torus_bandwidth(interconnect: Interconnect, members: np.ndarray, devices: int) -> float:
    shape = interconnect.torus(devices)
    total = 0.0
    for size, places in zip(shape, np.unravel_index(members, shape), strict=True):
        taken = np.unique(places)
        if len(taken) > 1:
            stride = int(np.min(np.diff(taken)))
            closed = size % interconnect.ring == 0 and len(taken) * stride == size
            total += interconnect.link * (2 if closed else 1) / stride
    return total


@functools.lru_cache
def slowest(interconnect: Interconnect, groups: Groups, devices: int) -> tuple[float, bool]:
    """Lowest `bandwidth` of any group, and whether any group crosses the boundary of a node or pod."""
    far = any(len({member // interconnect.domain for member in group}) > 1 for group in groups)
    return min(bandwidth(interconnect, group, devices) for group in groups), far


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Time of each part of a step on one device, in seconds.

    Attributes:
      compute: arithmetic.
      memory: main memory traffic.
      inside: communication within a node or pod.
      outside: communication between nodes or pods.
    """

    compute: float
    memory: float
    inside: float
    outside: float

    @property
    def network(self) -> float:
        """Total communication; collectives do not overlap each other."""
        return self.inside + self.outside

    @property
    def overlapped(self) -> float:
        """Step time if arithmetic, memory traffic and communication overlap perfectly."""
        return max(self.compute, self.memory, self.network)

    @property
    def serial(self) -> float:
        """Step time without any overlap."""
        return self.compute + self.memory + self.network

    @property
    def bound(self) -> str:
        """The bottleneck: the part that takes longest."""
        parts = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(parts, key=parts.__getitem__)


def roofline(
    device: Device, dtype: str, flops: float, traffic: float, collectives: Sequence[Collective], devices: int
) -> Roofline:
    """Predict the time of each part of a step.

    Args:
      device: the accelerator.
      dtype: dtype of the matrix products, "bfloat16" or "float32".
      flops: FLOPs of a step, per device.
      traffic: bytes of main memory traffic of a step, per device.
      collectives: collectives of a step.
      devices: number of devices.
    """
    network = {False: 0.0, True: 0.0}
    for collective in collectives:
        if collective.group_size > 1:
            rate, far = slowest(device.interconnect, collective.groups, devices)
            network[far] += collective.count * on_the_wire(collective) / rate
    return Roofline(flops / device.peak(dtype), traffic / device.bandwidth, network[False], network[True])


def utilisation(model_flops: float, devices: int, peak: float, seconds: float) -> float:
    """MFU (model FLOP utilisation): FLOPs that the model needs, without recomputation, over peak FLOPs in that time.

    model_flops / (devices * peak * seconds)
    """
    return model_flops / (devices * peak * seconds)
