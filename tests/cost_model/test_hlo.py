"""Arithmetic and collectives of compiled programs, against closed forms; on virtual CPU devices."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dydiff_jax.cost_model import hlo, traffic, work
from dydiff_jax.cost_model.reader import Program


def compiled(function, *shapes, dtype=jnp.float32) -> str:
    return (
        jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)).compile().as_text()
    )


def convolve(x, kernel, stride=1, padding="SAME", groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def chain(x, weights):
    """5 products in a loop."""
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0]


def nested(x, weights):
    """3 times the 5 products."""
    return jax.lax.scan(lambda h, _: (chain(h, weights), None), x, None, length=3)[0]


FORWARD = 2 * 8 * 64 * 64
#: Elements of a row that a window of 3 meets with padding 1: 3 at each place, but 2 at both ends.
SAME = 3 * 16 - 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "function, shapes, expected",
    [
        (jnp.matmul, [(8, 64), (64, 32)], 2 * 8 * 64 * 32),
        (lambda a, b: jnp.einsum("bij,bkj->bik", a, b), [(3, 8, 64), (3, 16, 64)], 2 * 3 * 8 * 16 * 64),
        (chain, [(8, 64), (5, 64, 64)], 5 * FORWARD),
        (nested, [(8, 64), (5, 64, 64)], 15 * FORWARD),
        (jax.grad(lambda w, x: jnp.sum(chain(x, w)), 0), [(5, 64, 64), (8, 64)], 5 * 3 * FORWARD),
        (convolve, [(2, 16, 16, 8), (3, 3, 8, 24)], 2 * 2 * SAME**2 * 8 * 24),
        (
            functools.partial(convolve, stride=2, padding="VALID"),
            [(2, 17, 17, 8), (3, 3, 8, 24)],
            2 * 2 * (8 * 3) ** 2 * 8 * 24,
        ),
        (  # the gradient of the input steps over holes
            jax.grad(lambda x, k: jnp.sum(convolve(x, k, stride=2, padding="VALID") ** 2)),
            [(2, 17, 17, 8), (3, 3, 8, 24)],
            2 * 2 * 2 * (8 * 3) ** 2 * 8 * 24,
        ),
        (functools.partial(convolve, groups=4), [(2, 16, 16, 8), (3, 3, 2, 24)], 2 * 2 * SAME**2 * 2 * 24),
        (
            jax.grad(lambda k, x: jnp.sum(convolve(x, k) ** 2)),
            [(3, 3, 8, 24), (2, 16, 16, 8)],
            2 * 2 * 2 * SAME**2 * 8 * 24,
        ),
    ],
)
def test_flops_are_those_of_the_formula(function, shapes, expected, dtype):
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    assert work.model_flops(function, *arrays) == expected
    assert hlo.flops(compiled(function, *shapes, dtype=dtype)) == expected


def test_a_loop_counts_as_what_it_unrolls_to():
    """XLA's own analysis is short by the trips; this reading is not."""
    rolled = compiled(nested, (8, 64), (5, 64, 64))
    layers = range(15)
    unrolled = compiled(
        lambda x, w: functools.reduce(lambda h, i: jnp.tanh(h @ w[i % 5]), layers, x), (8, 64), (5, 64, 64)
    )
    assert hlo.flops(rolled) == hlo.flops(unrolled) == 15 * FORWARD


def mesh():
    return jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def sharded_gradient(weights_spec, x_spec, scan):
    """The program of the gradient of a sum over 3 layers of 64 x 64, for a batch of 16."""

    def loss(weights, x):
        layers = range(3)
        out = (
            chain(x, weights) if scan else functools.reduce(lambda h, i: jnp.tanh(h @ weights[i]), layers, x)
        )
        return jnp.sum(out**2)

    where, what = NamedSharding(mesh(), weights_spec), NamedSharding(mesh(), x_spec)
    shapes = jax.ShapeDtypeStruct((3, 64, 64), jnp.float32), jax.ShapeDtypeStruct((16, 64), jnp.float32)
    step = jax.jit(jax.grad(loss), in_shardings=(where, what), out_shardings=where)
    return step.lower(*shapes).compile().as_text()


@pytest.mark.parametrize("scan", [True, False])
def test_data_parallel_gradients_are_summed_once(scan):
    text = sharded_gradient(P(), P(("data", "fsdp")), scan)
    found = hlo.collectives(text)
    assert {c.kind for c in found} == {"all-reduce"} and {c.groups for c in found} == {(tuple(range(8)),)}
    assert sum(c.bytes * c.count for c in found) == 4 * 3 * 64 * 64
    products = 9 if scan else 8  # a loop also differentiates its first input, which nobody asked for
    assert hlo.flops(text) == products * 2 * 2 * 64 * 64


def test_sharded_weights_are_gathered_in_forward_and_backward():
    found = hlo.collectives(sharded_gradient(P(None, "fsdp"), P(("data", "fsdp")), scan=True))
    gathers = [c for c in found if c.kind == "all-gather"]
    assert {c.groups for c in gathers} == {((0, 1), (2, 3), (4, 5), (6, 7))} and {
        c.count for c in gathers
    } == {3}
    assert sum(c.bytes * c.count for c in gathers) == 2 * 4 * 3 * 64 * 64


LOOP = """HloModule loop, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}}

%compare (x: s32[], y: s32[]) -> pred[] {{
  %x = s32[] parameter(0)
  %y = s32[] parameter(1)
  ROOT %less = pred[] compare(%x, %y), direction={direction}
}}

%condition (state: (s32[], f32[8,4], s32[])) -> pred[] {{
  %state = (s32[], f32[8,4]{{1,0:T(8,128)(2,1)S(1)}}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %limit = s32[]{{:T(128)}} constant({limit})
  ROOT %test = pred[] fusion(%i, %limit), kind=kLoop, calls=%compare
}}

%body (state.1: (s32[], f32[8,4], s32[])) -> (s32[], f32[8,4], s32[]) {{
  %state.1 = (s32[], f32[8,4]{{1,0}}, s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %v = f32[8,4]{{1,0}} get-tuple-element(%state.1), index=1
  %step = s32[] get-tuple-element(%state.1), index=2
  %next = s32[] add(%i.1, %step), metadata={{op_name="loop/(add)"}}
  %start = f32[8,4]{{1,0}} all-reduce-start(%v), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add
  %done = f32[8,4]{{1,0}} all-reduce-done(%start)
  ROOT %out = (s32[], f32[8,4], /*index=2*/s32[]) tuple(%next, %done, %step)
}}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {{
  %p = f32[8,4]{{1,0}} parameter(0)
  %zero = s32[] constant({start})
  %two = s32[] constant({step})
  %first = s32[] copy(%zero)
  %init = (s32[], f32[8,4]{{1,0}}, s32[]) tuple(%first, %p, %two)
  %while = (s32[], f32[8,4]{{1,0}}, s32[]) while(%init), condition=%condition, body=%body
  %gathered = f32[32,4]{{1,0}} all-gather(%p), channel_id=4, replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}
  %moved = f32[8,4]{{1,0}} collective-permute(%p), channel_id=5, source_target_pairs={{{{0,1}},{{1,0}}}}
  ROOT %result = f32[8,4]{{1,0}} get-tuple-element(%while), index=1
}}
"""


@pytest.mark.parametrize(
    "start, limit, step, direction, trips",
    [(0, 5, 1, "LT", 5), (0, 5, 2, "LT", 3), (-1, 5, 1, "LE", 7), (3, 3, 1, "LT", 0), (0, 6, 2, "LE", 4)],
)
def test_trips_are_read_off_the_counter(start, limit, step, direction, trips):
    """Through copies, fusions, and a step that the loop carries along unchanged; an asynchronous sum counts once."""
    text = LOOP.format(start=start, limit=limit, step=step, direction=direction)
    reduce, gather, move = hlo.collectives(text)
    assert (reduce.kind, reduce.bytes, reduce.count, reduce.group_size) == ("all-reduce", 8 * 4 * 4, trips, 4)
    assert (gather.kind, gather.bytes, gather.count) == ("all-gather", 4 * 8 * 4 * 4, 1)
    assert (move.kind, move.groups) == ("collective-permute", ((0, 1), (1, 0)))


def test_a_loop_without_a_readable_count_is_refused_only_where_it_matters():
    text = LOOP.format(start=0, limit=5, step=1, direction="NE")
    assert hlo.flops(text) == 0
    with pytest.raises(ValueError, match="count the program tells"):
        hlo.collectives(text)


def test_a_noted_count_is_taken():
    text = LOOP.format(start=0, limit=5, step=1, direction="NE")
    noted = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"11"}}')
    assert hlo.collectives(noted)[0].count == 11


SCATTER = """HloModule scatter, num_partitions=4

%all-reduce-scatter.1 (input: bf16[64,8]) -> bf16[16,8] {
  %input = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.6 = bf16[64,8]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=5, replica_groups=[1,4]<=[4]
  %zero = s32[] constant(0)
  ROOT %slice = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.6, %zero, %zero), dynamic_slice_sizes={16,8}
}

%start (shard: bf16[16,8]) -> (bf16[16,8], bf16[64,8]) {
  %shard = bf16[16,8]{1,0} parameter(0)
  %gather.1 = bf16[64,8]{1,0} all-gather(%shard), channel_id=9, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %both = (bf16[16,8], bf16[64,8]) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (shard.1: bf16[16,8]) -> bf16[64,8] {
  %shard.1 = bf16[16,8]{1,0} parameter(0)
  ROOT %gather.2 = bf16[64,8]{1,0} all-gather(%shard.1), channel_id=9, replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (p: bf16[64,8]) -> bf16[64,8] {
  %p = bf16[64,8]{1,0} parameter(0)
  %fusion.26 = bf16[16,8]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
  %async-start = (bf16[16,8], bf16[64,8]) fusion(%fusion.26), kind=kCustom, calls=%start
  %part = bf16[16,8] get-tuple-element(%async-start), index=0
  ROOT %async-done = bf16[64,8]{1,0} fusion(%part), kind=kCustom, calls=%done
}
"""


def test_the_fused_collectives_of_a_tpu():
    """A sum and its slice are a reduce-scatter; start and end of a gather are one."""
    scatter, gather = hlo.collectives(SCATTER)
    assert (scatter.kind, scatter.bytes, scatter.dtype) == ("reduce-scatter", 64 * 8 * 2, "bf16")
    assert (gather.kind, gather.bytes, gather.count) == ("all-gather", 64 * 8 * 2, 1)


MOVES = """HloModule moves

%update (whole: f32[100,8], row: f32[1,8], at: s32[]) -> f32[100,8] {
  %whole = f32[100,8]{1,0} parameter(0)
  %row = f32[1,8]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %in_place = f32[100,8]{1,0} dynamic-update-slice(%whole, %row, %at, %at)
}

%take (whole.1: f32[100,8], at.1: s32[]) -> f32[1,8] {
  %whole.1 = f32[100,8]{1,0} parameter(0)
  %at.1 = s32[] parameter(1)
  ROOT %taken = f32[1,8]{1,0} dynamic-slice(%whole.1, %at.1, %at.1), dynamic_slice_sizes={1,8}
}

ENTRY %main (p: f32[100,8], q: f32[8,16]) -> f32[100,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %q = f32[8,16]{1,0} parameter(1)
  %at.2 = s32[] constant(3)
  %row.1 = f32[1,8]{1,0} fusion(%p, %at.2), kind=kLoop, calls=%take
  %set = f32[100,8]{1,0} fusion(%p, %row.1, %at.2), kind=kLoop, calls=%update
  %dot = f32[100,16]{1,0} dot(%set, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %copy-start.1 = (f32[8,16]{1,0:S(1)}, f32[8,16]{1,0}, u32[]) copy-start(%q)
  %copy-done.1 = f32[8,16]{1,0:S(1)} copy-done(%copy-start.1)
  %near = f32[8,16]{1,0:S(1)} negate(%copy-done.1)
  ROOT %copy.2 = f32[100,8]{1,0} copy(%set)
}
"""


def test_traffic_counts_what_main_memory_sees():
    """4 bytes for: a row read and written, an index, a row read and written with its index, the product's three
    matrices, one reading of q into on-chip memory (what happens there is free), and a copy."""
    row, index = 8, 1
    words = (2 * row + index) + (2 * row + index) + (800 + 128 + 1600) + 128 + 2 * 800
    assert traffic.traffic(MOVES) == 4 * words
    assert traffic.products(MOVES, 2) == 2 * (800 + 128 + 1600)


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("HloModule empty")
