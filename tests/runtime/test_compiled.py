"""What is read from the text of a compiled program."""

import pytest

from mimic_jax.runtime import compiled

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
  def as_text(self):
    return LOOPS


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
