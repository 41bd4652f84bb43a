"""What the compiled step of each objective sends between eight devices, and needs beside its arguments, read from the program."""

import itertools

import jax
import pytest

from mimic_jax import objectives
from mimic_jax.runtime import compiled, sharding
from mimic_jax.training import step as step_lib
from tests import small

# Of a batch; an eighth of it, a device's rows, divides the sizes of no parameter, so that a batch is known by its shape.
IMAGES = dict.fromkeys(objectives.names(), 480) | {'resnet': 120}
CLASSES = tuple('abcdefg')
METHOD = (
  'masked_autoencoding',
  'mimic',
)  # looked at on all meshes whenever tests run; the others on one, with the whole runs


def program(name: str, fsdp: int, remat: str = 'dots', **changes: int) -> step_lib.Program:
  """Returns the program of a ViT with two blocks of width 256 (or a ResNet-18) on eight devices."""
  model = small.model_section(dim=256, heads=4, remat=remat)
  if name == 'resnet':
    model = small.model_section(preset='resnet18', image_size=32, patch_size=0, dim=0, depth=0, heads=0)
  section = objectives.defaults('mimic' if name == 'resnet' else name).unlock()
  dropped = 0.0 if name in ('resnet', 'linear_probe') else 0.1
  section.update({'batch_images': IMAGES[name], 'drop_path': dropped, **changes})
  if name == 'masked_autoencoding':
    section.mae.update(decoder_dim=128, decoder_depth=2, decoder_heads=4, mask_ratio=0.5)
  if name == 'local_mim':
    section.local_mim.update(decoder_dim=128, decoder_heads=4, mask_ratio=0.5, scales=(2.0, 0.5))
  if name == 'moco_v3':
    section.moco.update(dim=128, hidden=1024)
  if name == 'ssl_fer':
    section.ssl_fer.dim = 128
  if name == 'amcl_masks':
    section.gan.width = 32
  if name == 'amcl':
    section.amcl.update(dim=128, masks='there', masks_width=8)
  objective = objectives.make(section, model, CLASSES, 'objective')
  return step_lib.make_program(section, objective, 4096, sharding.make_mesh(-1, fsdp))


def strange(name: str, made: step_lib.Program, images: int, found: dict) -> list[dict]:
  """Returns the collectives that carry pictures or what a network makes of them, but for mixing's rows and a pair loss's candidates."""
  objective, here = made.objective, images // 8
  views, size = objective.inputs()['image'].views, objective.config.image_size
  rows, widths = 0, ()  # of the candidates of a pair loss
  if name in ('regression', 'hmtl'):
    pass
  elif objective.labelled:
    rows, widths = views * images, (len(CLASSES), objective.stage['head']['projection_dim'])
  elif name == 'amcl':
    rows, widths = views * images, (objective.stage['amcl']['dim'],)
  elif name == 'ssl_fer':
    rows, widths = objective.pictures * images, (objective.stage['ssl_fer']['dim'],)
  elif name == 'moco_v3':
    rows, widths = images, (objective.stage['moco']['dim'],)

  def fine(c: dict) -> bool:
    shape = tuple(c['shape'])
    if not any(n and n % here == 0 for n in shape):
      return True
    if c['kind'] == 'collective-permute':  # a device's own pictures or their labels
      return shape in ((here, views, size, size, 3), (here, len(CLASSES)))
    return len(shape) <= 2 and max(shape) == rows and (len(shape) == 1 or min(shape) in widths)

  return [c for c in found['collectives'] if not fine(c)]


@pytest.fixture(scope='module')
def found():
  """Returns a function: (objective, fsdp) → its program and what it says of itself, compiled once."""
  kept = {}

  def of(name, fsdp):
    if (name, fsdp) not in kept:
      made = program(name, fsdp)
      kept[name, fsdp] = made, compiled.summary(made.lower().compile())
    return kept[name, fsdp]

  return of


@pytest.mark.parametrize(
  ('name', 'fsdp'),
  [
    *itertools.product(METHOD, (1, 4, 8)),
    *(
      pytest.param(name, 4, marks=pytest.mark.processes)
      for name in (*objectives.names(), 'resnet')
      if name not in METHOD
    ),
  ],
)
def test_only_parameters_gradients_and_scalars_travel(name, fsdp, found):
  made, said = found(name, fsdp)
  assert strange(name, made, IMAGES[name], said) == []
  gathered = [c for c in said['collectives'] if c['kind'] == 'all-gather' and c['bytes'] > 2**16]
  assert (fsdp > 1) <= bool(gathered)  # else nothing was split


@pytest.mark.parametrize('name', [*METHOD, pytest.param('moco_v3', marks=pytest.mark.processes)])
def test_splitting_the_weights_needs_less_and_less_room(name, found):
  one, four, eight = (found(name, fsdp)[1] for fsdp in (1, 4, 8))
  assert eight['temporaries'] < four['temporaries'] < one['temporaries']
  assert eight['arguments'] < four['arguments'] < one['arguments']


@pytest.mark.parametrize('taken_out', ['along_batch', 'rolled'])
def test_without_a_constraint_whole_batches_travel_and_are_seen(taken_out, monkeypatch):
  plain = {'along_batch': lambda x: x, 'rolled': lambda x, shift: jax.numpy.roll(x, -shift, axis=0)}
  monkeypatch.setattr(sharding, taken_out, plain[taken_out])
  made = program('mimic', 8)
  odd = strange('mimic', made, IMAGES['mimic'], compiled.summary(made.lower().compile()))
  assert any({480, 960} & set(c['shape']) for c in odd)


def test_a_batch_in_parts_needs_a_part_of_the_memory_and_sends_no_activations():
  images = 4 * IMAGES['masked_autoencoding']
  whole, parts = (program('masked_autoencoding', 4, batch_images=images, accumulate=n) for n in (1, 4))
  said, part = (compiled.summary(made.lower().compile()) for made in (whole, parts))
  assert part['temporaries'] < said['temporaries'] / 2
  assert not strange('masked_autoencoding', parts, images // 4, part)


def test_what_is_computed_anew_needs_less_memory_and_more_arithmetic():
  kinds = ('none', 'dots', 'weight_dots', 'full')
  of = {remat: program('masked_autoencoding', 1, remat) for remat in kinds}
  programs = {remat: made.lower().compile() for remat, made in of.items()}
  memory = {remat: p.memory_analysis().temp_size_in_bytes for remat, p in programs.items()}
  flops = {remat: p.cost_analysis()['flops'] for remat, p in programs.items()}
  for less, more in itertools.pairwise(kinds):
    assert memory[more] < memory[less], (less, more)
    assert flops[more] > flops[less], (less, more)
