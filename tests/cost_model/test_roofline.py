"""Times of transfers and steps against their formulae."""

import dataclasses

import pytest

from dydiff_jax.cost_model import roofline
from dydiff_jax.cost_model.devices import DEVICES, Interconnect
from dydiff_jax.cost_model.hlo import Collective

NODE = DEVICES["H100"].interconnect
V5E, V5P = (DEVICES[name].interconnect for name in ("v5e", "v5p"))


def collective(kind, size, *groups, count=1):
    return Collective(kind, size, "f32", groups or (tuple(range(8)),), count, "main", "")


def test_a_ring_sends_all_but_one_part():
    assert roofline.on_the_wire(collective("all-gather", 800)) == 700
    assert roofline.on_the_wire(collective("reduce-scatter", 800)) == 700
    assert roofline.on_the_wire(collective("all-reduce", 800)) == 1400
    assert roofline.on_the_wire(collective("all-to-all", 800)) == 700
    assert roofline.on_the_wire(collective("collective-permute", 800, (0, 1))) == 800


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather():
    sent = [
        roofline.on_the_wire(collective(kind, 96)) for kind in ("all-reduce", "reduce-scatter", "all-gather")
    ]
    assert sent[0] == sent[1] + sent[2]


@pytest.mark.parametrize(
    "links, devices, group, expected",
    [
        (NODE, 64, range(8), 450e9),
        (NODE, 64, [0, 4], 450e9),
        (NODE, 64, range(0, 64, 8), 50e9),  # one GPU of each node: its own network port
        (NODE, 64, range(64), 8 * 50e9),  # all of them: eight ports
        (NODE, 64, range(0, 64, 2), 4 * 50e9),
        (V5E, 256, range(16), 2 * 45e9),  # one whole axis of 16 is a ring
        (V5E, 256, range(256), 4 * 45e9),  # both axes
        (V5E, 256, range(8), 45e9),  # half an axis is a line
        (V5E, 256, range(0, 16, 8), 2 * 45e9 / 8),  # 8 groups share the ring
        (V5E, 64, range(0, 8, 4), 45e9 / 4),  # 4 groups share the line
        (V5E, 256, range(0, 256, 16), 2 * 45e9),
        (V5E, 64, range(8), 45e9),  # an axis of 8 does not close
        (V5E, 512, range(0, 512, 256), 3.125e9),  # two pods
        (V5E, 512, range(512), 4 * 45e9),  # 256 ports are faster than the torus
        (V5P, 512, range(8), 2 * 90e9),
        (V5P, 512, range(512), 6 * 90e9),
        (V5P, 16, range(16), (1 + 1 + 2) * 90e9),  # 2 x 2 x 4: only the last axis closes
    ],
)
def test_the_links_that_a_group_uses(links, devices, group, expected):
    assert roofline.bandwidth(links, tuple(group), devices) == pytest.approx(expected)


@pytest.mark.parametrize("devices, shape", [(8, (2, 4)), (16, (4, 4)), (128, (8, 16)), (1024, (16, 16))])
def test_slices_of_v5e(devices, shape):
    assert V5E.torus(devices) == shape


@pytest.mark.parametrize(
    "devices, shape", [(8, (2, 2, 2)), (32, (2, 4, 4)), (256, (4, 8, 8)), (512, (8, 8, 8))]
)
def test_slices_of_v5p(devices, shape):
    assert V5P.torus(devices) == shape


def test_a_torus_of_another_number_is_refused():
    with pytest.raises(ValueError, match="power of two"):
        V5E.torus(12)


def test_the_parts_of_a_step():
    """989.4e12 FLOPs, 3.35e12 bytes and 2 x 450e9 bytes around the node take a second, a second and 7/4 seconds."""
    exchange = [collective("all-gather", 450e9, count=2), collective("all-reduce", 1e30, (0,), (1,))]
    line = roofline.roofline(DEVICES["H100"], "bfloat16", 989.4e12, 3.35e12, exchange, 8)
    assert (line.compute, line.memory, line.network) == pytest.approx((1, 1, 7 / 4))
    assert (line.overlapped, line.serial, line.bound) == (
        pytest.approx(7 / 4),
        pytest.approx(15 / 4),
        "network",
    )
    assert line.outside == 0
    half = roofline.roofline(DEVICES["H100"], "float32", 989.4e12, 0, [], 8)
    assert half.compute == pytest.approx(2) and half.bound == "compute"


def test_what_passes_between_nodes_is_told_apart():
    across = collective("all-reduce", 50e9, *((n, n + 8) for n in range(8)))
    line = roofline.roofline(DEVICES["H200"], "bfloat16", 0, 0, [across], 16)
    assert (line.inside, line.outside) == (0, pytest.approx(1))


def test_the_slowest_group_decides():
    mixed = collective("all-gather", 1e9, (0, 1), (7, 8))
    assert roofline.slowest(NODE, mixed.groups, 16) == (50e9, True)


def test_utilisation_is_one_at_the_peak_and_falls_with_recomputation():
    assert roofline.utilisation(8e12, 8, 1e12, 1.0) == 1
    assert roofline.utilisation(8e12, 8, 1e12, 4 / 3) == 0.75


def test_a_faster_link_never_slows_a_step():
    groups = (tuple(range(0, 64, 4)),)
    links = [
        dataclasses.replace(NODE, link=x * 1e9, outside=y * 1e9) for x in (100, 450) for y in (10, 50, 900)
    ]
    speeds = [roofline.bandwidth(link, groups[0], 64) for link in links]
    assert speeds[:3] == sorted(speeds[:3]) and all(
        a <= b for a, b in zip(speeds[:3], speeds[3:], strict=True)
    )


def test_the_table_of_devices():
    for device in DEVICES.values():
        assert device.float32 <= device.bfloat16 and device.bandwidth < device.bfloat16
        assert isinstance(device.interconnect, Interconnect)
