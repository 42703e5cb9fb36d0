"""Accelerators by name: peak arithmetic, memory and interconnect.

All figures are peaks per device, in FLOP/s, bytes and bytes/s; link bandwidths are per direction.

NVIDIA H100 SXM and H200 SXM: NVIDIA's data sheets (without sparsity): bfloat16 989.4 TFLOP/s, TF32, which JAX uses for
float32 products by default, 494.7 TFLOP/s; 80 GB at 3.35 TB/s and 141 GB at 4.8 TB/s; NVLink 900 GB/s in both
directions together among the 8 GPUs of a node; and between nodes, as in a DGX, a network of 400 Gb/s for each GPU.

TPU v5e and v5p: Google's Cloud TPU documentation, "TPU v5e" and "TPU v5p": bfloat16 197 and 459 TFLOP/s; 16 GB at
819 GB/s and 95 GiB at 2765 GB/s; a pod of 256 chips in a 2D torus and of 8960 in a 3D torus. JAX computes float32
products on a TPU in one bfloat16 pass by default, at the same rate. Links, rings and the network between pods: Austin
et al., "How to Scale Your Model" (2025), part 2: 45 and 90 GB/s for each link and direction, 3.125 and 6.25 GB/s for
each chip between pods; an axis of a slice closes to a ring where it has the pod's full 16 (v5e), or a multiple of 4
chips (v5p).
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Interconnect:
    """Interconnect: fast links within a domain, a slower network between domains.

    Attributes:
      domain: devices in a node or pod.
      link: bandwidth of one link within a domain; for GPUs, of the whole port to the switch.
      dimensions: of the torus within a domain; 0 for a switch.
      ring: an axis of the torus closes to a ring if its length is a multiple of this.
      outside: bandwidth of each device between domains.
    """

    domain: int
    link: float
    dimensions: int
    ring: int
    outside: float

    def torus(self, devices: int) -> tuple[int, ...]:
        """Shape of a slice of this many devices, as cubic as powers of two allow, the longest axis last.

        Raises:
          ValueError: no such slice exists.
        """
        size = min(devices, self.domain)
        exponent = round(math.log2(size))
        if 2**exponent != size:
            raise ValueError(f"devices: expected a power of two on a torus, found {devices}")
        low, more = divmod(exponent, self.dimensions)
        return tuple(2 ** (low + (axis >= self.dimensions - more)) for axis in range(self.dimensions))


@dataclasses.dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
      name: value of ``--hardware``.
      bfloat16: FLOP/s of matrix products in bfloat16.
      float32: FLOP/s of matrix products of float32 arrays, in the precision that JAX chooses by default.
      memory: capacity in bytes.
      bandwidth: bytes/s of the main memory.
      interconnect: links and network.
    """

    name: str
    bfloat16: float
    float32: float
    memory: float
    bandwidth: float
    interconnect: Interconnect

    def peak(self, dtype: str) -> float:
        """Peak FLOP/s of matrix products in a dtype, "bfloat16" or "float32"."""
        return {"bfloat16": self.bfloat16, "float32": self.float32}[dtype]


_NODE = Interconnect(domain=8, link=450e9, dimensions=0, ring=0, outside=50e9)

DEVICES = {
    device.name: device
    for device in (
        Device("H100", 989.4e12, 494.7e12, 80e9, 3.35e12, _NODE),
        Device("H200", 989.4e12, 494.7e12, 141e9, 4.8e12, _NODE),
        Device("v5e", 197e12, 197e12, 16e9, 819e9, Interconnect(256, 45e9, 2, 16, 3.125e9)),
        Device("v5p", 459e12, 459e12, 95 * 2**30, 2765e9, Interconnect(8960, 90e9, 3, 4, 6.25e9)),
    )
}
