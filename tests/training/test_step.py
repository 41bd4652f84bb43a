"""What the compiled step computes beside the loss: batches in parts, the moving average of the weights."""

import jax
import numpy as np
import pytest

from mimic_jax import objectives
from mimic_jax.runtime import checkpoint, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import step as step_lib
from tests import small

PLAIN = {
  'views': 1, 'contrast.weight': 0.0, 'mix.probability': 0.0, 'batch_images': 32, 'drop_path': 0.0,
  'augment.scale': (1.0, 1.0), 'augment.ratio': (1.0, 1.0), 'augment.flip': 0.0,
}  # fmt: skip


def made(stage, fsdp=2):
  objective = objectives.make(stage, small.model_section(dim=64), ('a', 'b', 'c'), 'objective')
  return step_lib.make_program(stage, objective, 64, sharding.make_mesh(-1, fsdp))


def steps_of(program, batch, count=3):
  """Returns what each of the first steps said, and the state after it, on the host."""
  state, key = program.init(jax.random.key(0)), jax.random.key(1)
  for _ in range(count):
    state, said = program.step(state, batch, key)
    yield jax.device_get(said), jax.device_get(state)


@pytest.fixture
def batch(rng):
  return {
    'image': rng.integers(0, 256, (32, 16, 16, 3), np.uint8),
    'label': rng.integers(0, 3, 32).astype(np.int32),
    'index': np.arange(32, dtype=np.int32),
  }


def test_a_batch_in_parts_is_the_whole_where_nothing_is_drawn(batch):
  whole = steps_of(made(small.mimic_stage(**PLAIN)), batch)
  in_parts = steps_of(made(small.mimic_stage(**PLAIN, accumulate=4)), batch)
  for (a, state_a), (b, state_b) in zip(whole, in_parts, strict=True):
    for name in ('loss', 'grad_norm', 'accuracy'):
      assert b[name] == pytest.approx(a[name], rel=2e-5), name
    want = checkpoint.flatten(state_a['opt_state'])
    for name, array in checkpoint.flatten(state_b['opt_state']).items():
      np.testing.assert_allclose(array, want[name], rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
  ('changes', 'why'),
  [
    ({}, r"accumulate is 2, and objective 'mimic' puts pictures of a batch together; expected 1"),
    ({'contrast.weight': 0.0}, r"objective 'mimic' puts pictures of a batch together"),  # mixing
    ({**PLAIN, 'batch_images': 40}, r'accumulate is 2; expected a divisor of the 5 pictures of batch_images'),
  ],
)
def test_what_can_not_be_in_parts_is_refused(changes, why):
  with pytest.raises(UserError, match=why):
    made(small.mimic_stage(**changes, accumulate=2))


def test_the_average_follows_the_weights_and_changes_none(batch):
  plain = steps_of(made(small.mimic_stage(**PLAIN)), batch)
  averaged = steps_of(made(small.mimic_stage(**PLAIN, ema=0.75)), batch)
  want = None
  for (_, alone), (_, state) in zip(plain, averaged, strict=True):
    params = checkpoint.flatten(state['params'])
    for name, array in checkpoint.flatten(alone['params']).items():
      np.testing.assert_array_equal(params[name], array, err_msg=name)
    first = jax.device_get(made(small.mimic_stage(**PLAIN)).init(jax.random.key(0))['params'])
    want = want or {k: v.astype(np.float64) for k, v in checkpoint.flatten(first).items()}
    want = {k: 0.75 * v + 0.25 * params[k] for k, v in want.items()}
    for name, array in checkpoint.flatten(state['ema']).items():
      np.testing.assert_allclose(array, want[name], rtol=1e-5, atol=1e-7, err_msg=name)
