"""How weights lie on devices that are not there: against counts made by hand."""

import json
import math

import pytest

from mimic_jax import config as config_lib
from mimic_jax.commands import layout
from mimic_jax.runtime import sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import planned


def vit_b_mae() -> dict[str, tuple[int, ...]]:
  """Returns the shapes of ViT-B/16's masked autoencoder, counted from the paper's sizes; blocks stacked."""

  def stack(prefix: str, depth: int, width: int) -> dict[str, tuple[int, ...]]:
    kernels = {
      'qkv': (width, 3 * width),
      'proj': (width, width),
      'fc1': (width, 4 * width),
      'fc2': (4 * width, width),
    }
    shapes = {}
    for name, (a, b) in kernels.items():
      shapes[f'{prefix} {name} kernel'] = (depth, a, b)
      shapes[f'{prefix} {name} bias'] = (depth, b)
    for norm in ('norm1', 'norm2'):
      shapes |= {f'{prefix} {norm} {part}': (depth, width) for part in ('scale', 'bias')}
    return shapes | {f'{prefix} norm {part}': (width,) for part in ('scale', 'bias')}

  return {
    **stack('encoder', 12, 768),
    **stack('decoder', 8, 512),
    'patches': (16 * 16 * 3, 768),
    'patches bias': (768,),
    'class token': (1, 1, 768),
    'embed': (768, 512),
    'embed bias': (512,),
    'mask token': (1, 1, 512),
    'pixels': (512, 16 * 16 * 3),
    'pixels bias': (768,),
  }


def test_vit_b_under_fsdp_8_takes_an_eighth_of_the_whole_and_what_can_not_be_split():
  config = config_lib.parse(['layout', '--config=pretrain_imagenet1k:vitb16']).config
  found = layout.rows(planned.program(config, 'pretrain', sharding.make_mesh(1, 8)))
  shapes = vit_b_mae()
  whole = 4 * sum(map(math.prod, shapes.values()))
  fixed = 4 * sum(
    n
    for n, s in ((math.prod(s), s) for s in shapes.values())
    if n < sharding.SMALLEST_SPLIT or all(d % 8 for d in s)
  )
  assert fixed < whole / 1000
  for tree, times, counter in (('params', 1, 0), ('opt_state', 2, 4)):
    of_tree = [r for r in found if r.tree == tree]
    assert sum(r.whole for r in of_tree) == times * whole + counter
    here = sum(r.here for r in of_tree)
    assert here == times * (whole - fixed) // 8 + times * fixed + counter
    assert here <= times * (whole / 8 + fixed) + counter


def test_without_fsdp_every_device_holds_all():
  config = config_lib.parse(['layout', '--config=quickstart']).config
  for name in config_lib.stages(config):
    program = planned.program(config, name, sharding.make_mesh(8, 1), 2)
    assert all(r.here == r.whole and r.axis is None for r in layout.rows(program))


def test_the_command_prints_every_array_and_the_sums_and_what_travels(tmp_path, capsys):
  file = tmp_path / 'layout.json'
  layout.main(['--config', 'finetune_ferplus', '--devices', '4', '--classes', '8', '--json', str(file)])
  out = capsys.readouterr().out
  assert 'stage finetune on 4 devices, data=1, fsdp=4' in out
  rows = {
    line.split()[0]: line.split() for line in out.splitlines() if line.startswith(('params/', 'opt_state/'))
  }
  assert rows['params/classifier/fc/kernel'][1:] == ['768', '×', '8', 'float32', '24,576', '–', '24,576']
  assert 'opt_state/encoder/blocks/mlp/fc1/kernel' in rows
  assert 'optimiser' in out
  assert '1/4 of the whole + not split' in out
  gathered = next(line.split() for line in out.splitlines() if line.startswith('all-gather'))
  assert gathered[1:] == ['768', '×', '3072', 'float32', '2', '24', '9,437,184']
  found = json.loads(file.read_text())['finetune']
  assert f'temporaries of the step: {found["temporaries"]:,} bytes on a device' in out
  assert {
    'kind': 'all-gather',
    'dtype': 'float32',
    'shape': [768, 3072],
    'bytes': 9437184,
    'group': 4,
    'count': 2,
    'times': 24,
    'sent': 9437184 * 3 / 4,
  } in found['collectives']
  assert len(found['arrays']) == len(rows)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--fsdp=3'], r'--fsdp is 3; expected a divisor of --devices, 8'),
    (['--devices=0'], r'--devices is 0; expected at least 1'),
    (['--devices=9'], r'--devices is 9, and this process has 8 already'),
    (['--config.pretrain.batch_images=12'], r'config.pretrain.batch_images is 12; expected a multiple of 8'),
    (['--stage=nope'], r"--stage is 'nope'; expected one of"),
    (['--classes=0'], r'--classes is 0; expected at least 1'),
    (['--data.root=x'], r"'--data.root=x' is not understood; expected --config.FIELD"),
    (['--config.model.dims=3'], r"there is no field 'dims'"),
  ],
)
def test_a_wrong_flag_is_named(flags, message):
  with pytest.raises(UserError, match=message):
    layout.main(['--config', 'quickstart', *flags])
