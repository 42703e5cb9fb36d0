"""The ways in which XLA writes groups of devices, against groups written out by hand."""

import numpy as np
import pytest

from dydiff_jax.cost_model import groups

PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))
COLUMNS = ((0, 4), (1, 5), (2, 6), (3, 7))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{{0,1},{2,3},{4,5},{6,7}}, use_global_device_ids=true", PAIRS),
        ("{{0,4},{1,5},{2,6},{3,7}}", COLUMNS),
        ("{}, channel_id=1", (tuple(range(8)),)),
        ("[4,2]<=[8], dimensions={0}", PAIRS),
        ("[4,2]<=[2,4]T(1,0), dimensions={0}", COLUMNS),
        ("[2,4]<=[2,2,2]T(1,0,2)", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("mesh['data'=4,'fsdp'=2] {'fsdp'}, dimensions={0}", PAIRS),
        ("mesh['data'=2,'fsdp'=4] {'data'}", COLUMNS),
        ("mesh['data'=4,'fsdp'=2] {'data','fsdp'}", (tuple(range(8)),)),
        ("mesh['data'=4,'fsdp'=2] {'fsdp','data'}", ((0, 2, 4, 6, 1, 3, 5, 7),)),
        ("mesh['a'=1,'b'=8] {'a'}", tuple((n,) for n in range(8))),
        ("mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a'}, dimensions={0}", PAIRS),
        ("mesh['a'=2,'b'=4], device_ids=(1,0,3,2,5,4,7,6) {'a'}", ((1, 5), (0, 4), (3, 7), (2, 6))),
        ("mesh['a'=8] {'a':(1)2}", COLUMNS),
        ("mesh['a'=8] {'a':(4)2}", PAIRS),
        ("mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
    ],
)
def test_notations(text, expected):
    assert groups.parse(text, 8) == expected


def test_an_unknown_notation_is_refused():
    with pytest.raises(ValueError, match="known notation"):
        groups.parse("<8 devices>", 8)


@pytest.mark.parametrize(
    "axes", [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("c", "b"), ("c", "a", "b")]
)
def test_a_mesh_is_a_transposed_array(axes):
    """Groups along some axes are the rows of the mesh with these axes moved last."""
    sizes = {"a": 2, "b": 3, "c": 4}
    mesh = np.arange(24).reshape(2, 3, 4)
    rest = [name for name in sizes if name not in axes]
    rows = mesh.transpose([list(sizes).index(name) for name in (*rest, *axes)])
    rows = rows.reshape(-1, np.prod([sizes[name] for name in axes]))
    chosen = ",".join(f"'{name}'" for name in axes)
    found = groups.parse(f"mesh['a'=2,'b'=3,'c'=4] {{{chosen}}}", 24)
    assert found == tuple(map(tuple, rows.tolist()))
