"""What is read from the text of a compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax.runtime import compiled, sharding

# As the TPU's compiler writes it: a loop that counts by twos to five in the body of another, and collectives outside, one of them begun and ended apart.
LOOPS = """HloModule jit_step, is_scheduled=true

%inner_body.1 (p: (f32[8], u32[])) -> (f32[8], u32[]) {
  %all-gather.1 = f32[8,4]{1,0:T(8,128)} all-gather(%x), dimensions={0}
  %constant.9 = u32[]{:T(128)} constant(2)
  %get-tuple-element.8 = u32[]{:T(128)} get-tuple-element(%p), index=1
  %add.9 = u32[]{:T(128)} add(%get-tuple-element.8, %constant.9)
  ROOT %tuple.9 = (f32[8], u32[]{:T(128)}) tuple(%x, %add.9)
}

%inner_condition.1 (p: (f32[8], u32[])) -> pred[] {
  %constant.7 = u32[]{:T(128)} constant(5), metadata={op_name="jit(step)"}
  %get-tuple-element.2 = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %lt.1 = pred[]{:T(512)} compare(%get-tuple-element.2, %constant.7), direction=LT, metadata={op_name="jit(step)"}
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-reduce.1 = (bf16[768]{0:T(1024)}, bf16[1,768]{1,0:T(2,128)}) all-reduce(%a, %b), to_apply=%add.1
  %while.1 = (f32[8], u32[]) while(%t), condition=%inner_condition.1, body=%inner_body.1
}

%condition.1 (p: (s32[], f32[8])) -> pred[] {
  ROOT %lt.2 = pred[] fusion(%p), kind=kLoop, calls=%compare.1
}

%compare.1 (p: s32[]) -> pred[] {
  ROOT %lt.3 = pred[] compare(%p, %q), direction=LT
}

%add.1 (a: bf16[], b: bf16[]) -> bf16[] {
  ROOT %add.2 = bf16[] add(%a, %b)
}

ENTRY %main.1 (p: f32[8]) -> f32[8] {
  %while.2 = (s32[], f32[8]) while(%t), condition=%condition.1, body=%body.1, backend_config={"known_trip_count":{"n":"12"}}
  %collective-permute-start = (f32[2,8]{0,1:T(8,128)}, f32[2,8]{0,1:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%c), channel_id=167
  %collective-permute-done = f32[2,8]{0,1:T(8,128)S(1)} collective-permute-done(%collective-permute-start)
  ROOT %all-reduce.2 = bf16[768]{0:T(1024)} all-reduce(%c), to_apply=%add.1
}
"""


class Program:
  def __init__(self, text=LOOPS):
    self.text = text

  def as_text(self):
    return self.text


@pytest.mark.parametrize(
  ('kind', 'shape', 'count', 'times'),
  [
    ('all-gather', (8, 4), 1, 36),
    ('all-reduce', (768,), 2, 13),
    ('all-reduce', (1, 768), 1, 12),
    ('collective-permute', (2, 8), 1, 1),
  ],
)
def test_what_loops_send_counts_as_often_as_they_run(kind, shape, count, times):
  found = {(c.kind, c.shape): c for c in compiled.collectives(Program())}
  assert (found[kind, shape].count, found[kind, shape].times) == (count, times)
  assert len(found) == 4
  assert compiled.loops(Program()) == 2


def ring(rows):
  """Adds up rows [n, m] of n devices in a ring; returns the bytes that one sends until each has its share, and from there to all."""
  n = len(rows)
  parts = rows.reshape(n, n, -1).copy()
  bytes_of_half = []
  for half in range(2):
    total = 0
    for turn in range(n - 1):
      of = [(d + half - turn) % n for d in range(n)]
      moving = [parts[d, of[d]].copy() for d in range(n)]
      for d in range(n):
        parts[(d + 1) % n, of[d]] = moving[d] + (0 if half else parts[(d + 1) % n, of[d]])
      total += moving[0].nbytes
    bytes_of_half.append(total)
  np.testing.assert_array_equal(parts.reshape(rows.shape), np.tile(rows.sum(0), (n, 1)))
  return bytes_of_half


def test_a_device_sends_what_a_ring_sends():
  mesh = sharding.make_mesh(2, 4)
  everyone = jax.sharding.PartitionSpec(('data', 'fsdp'))

  def step(x):  # float32 [8, 16] of each device
    return (
      jax.lax.psum(x, 'data'),
      jax.lax.psum(x, ('data', 'fsdp')),
      jax.lax.psum_scatter(x, 'fsdp', tiled=True),
      jax.lax.all_gather(x, 'fsdp', tiled=True),
      jax.lax.all_to_all(x, 'fsdp', 0, 0, tiled=True),
      jax.lax.ppermute(x, 'data', [(0, 1), (1, 0)]),
    )

  mapped = jax.shard_map(step, mesh=mesh, in_specs=everyone, out_specs=(everyone,) * 6, check_vma=False)
  found = compiled.collectives(jax.jit(mapped).lower(jax.ShapeDtypeStruct((64, 16), jnp.float32)).compile())
  draw = lambda n, m: np.random.default_rng(0).integers(0, 9, (n, m)).astype(np.float32)  # noqa: E731
  sent = {(c.kind, c.group): c.sent * c.times for c in found}
  assert sent == {
    ('all-reduce', 2): sum(ring(draw(2, 128))),
    ('all-reduce', 8): sum(ring(draw(8, 128))),
    ('reduce-scatter', 4): ring(draw(4, 128))[0],
    ('all-gather', 4): ring(draw(4, 4 * 128))[1],
    ('all-to-all', 4): 3 * 2 * 16 * 4,  # two of eight rows to each of three others
    ('collective-permute', 8): 8 * 16 * 4,
  }


@pytest.mark.parametrize(
  ('how', 'group'),
  [
    ('replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true', 4),
    ('replica_groups=[2,4]<=[8], dimensions={0}', 4),
    ('replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}', 2),
    ("replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0','axis_1'}, use_global_device_ids=true", 8),
    ("replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_2'}, dimensions={2}", 2),
    ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}, dimensions={2}", 4),
    ('replica_groups={}, dimensions={0}', 16),
  ],
)  # fmt: skip
def test_the_size_of_a_group_is_read_from_each_way_to_write_it(how, group):
  text = (
    'HloModule jit_step, num_partitions=16\n\nENTRY %main.1 (p: f32[8]) -> f32[8] {\n'
    f'  ROOT %all-gather.1 = f32[8]{{0}} all-gather(%p), {how}\n}}\n'
  )
  assert [c.group for c in compiled.collectives(Program(text))] == [group]
