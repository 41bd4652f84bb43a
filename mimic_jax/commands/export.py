"""Writes a trained model for transformers, timm, MAE's code, ONNX or StableHLO, with a model card.

  mimic export --checkpoint runs/mine --format hf --out exported

  hf         a folder for transformers' from_pretrained: a ViT by its class token, as BEiT by global pooling, MAE with its decoder
  timm       a folder for timm.create_model('local-dir:…'): a ViT or a ResNet
  mae        model.pth for MAE's repository (needs PyTorch)
  onnx       a program, model.onnx, with weights and symbolic batch (extra 'onnx')
  stablehlo  the same out of jax.export, for CPU, CUDA and TPU (extra 'stablehlo')

The last two compute in float32, are run beside this model before they count as done, and say logits, probabilities and
features. README.md in DIR is the card; docs/weights.md says what each form leaves out.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from mimic_jax import augment, models, objectives, weights
from mimic_jax.models import vit
from mimic_jax.report import card, tables
from mimic_jax.report import run as run_lib
from mimic_jax.runtime import checkpoint, cli, files, sharding
from mimic_jax.runtime.errors import UserError, one_of
from mimic_jax.training import log, trained
from mimic_jax.training.trained import Trained
from mimic_jax.weights import programs, writing

FORMATS = (*writing.WRITERS, *programs.NEEDS)
# of each format: the library that loads it, and how
CODE = {
  'hf': (
    'transformers',
    "from transformers import AutoImageProcessor, {kind}\nprocessor = AutoImageProcessor.from_pretrained('{out}')\n"
    "model = {kind}.from_pretrained('{out}')",
  ),
  'timm': ('timm', "import timm\nmodel = timm.create_model('local-dir:{out}', pretrained=True).eval()"),
  'mae': (
    'pytorch',
    "import torch\nstate = torch.load('{out}/model.pth', weights_only=True)['model']\nmodel.load_state_dict(state)  # a model of MAE's code",
  ),
  'onnx': (
    'onnx',
    "import onnxruntime\nsession = onnxruntime.InferenceSession('{out}/model.onnx')\n"
    "outputs = session.run(None, {{'images': images}})  # {inputs}",
  ),
  'stablehlo': (
    'jax',
    "import jax\nprogram = jax.export.deserialize(bytearray(open('{out}/model.stablehlo', 'rb').read()))\n"
    'outputs = program.call(images)  # {inputs}',
  ),
}


def described(model: Trained) -> writing.Model:
  """Returns what is written of a trained model: its weights as they are, and what says how to use them."""
  trees = {**checkpoint.flatten(model.params), **checkpoint.flatten(model.rest)}
  tensors = {name: np.asarray(a) for name, a in trees.items() if jnp.issubdtype(a.dtype, jnp.floating)}
  pixels = {k: model.stage.augment[k] for k in ('interpolation', 'mean', 'std')}
  objective = model.objective
  return writing.Model(tensors, objective.config, model.class_names, objective.facts(), pixels)


def forward_of(model: Trained, preprocess: bool) -> programs.Forward:
  """Returns what a model says of pictures, in float32 and by no device's own attention: [B, S, S, 3] → {name: [B, …]}.

  Args:
    model: the trained one.
    preprocess: whether it normalises uint8 pictures itself; else they are float32 and normalised.
  """
  section = {**model.config.model, 'dtype': 'float32', 'attention': 'xla', 'remat': 'none'}
  objective = objectives.make(model.stage, section, model.class_names, '--checkpoint')
  example = nnx.eval_shape(objective.init, jax.random.key(0))
  template, *_ = models.split(example, objective.trainable)
  a = model.stage.augment
  # out of the mesh: a program for several devices would be another
  params, rest, frozen = jax.device_get((model.params, model.rest, model.frozen.arrays))

  def forward(images: jax.Array) -> dict[str, jax.Array]:
    merged = model.frozen.attached(models.merge(template, params, rest), frozen)
    found = objective.answers(merged, augment.normalise(images, a.mean, a.std) if preprocess else images)
    if 'logits' in found:
      found = {**found, 'probabilities': jax.nn.softmax(found['logits'], axis=-1)}
    return found

  return forward


def _kinds(model: Trained) -> list[str]:
  """Returns what a model's first weights were, back through the runs of ours that it began from; [] for none."""
  folder, step = model.folder, model.step
  if step < 0:
    return [model.reading['kind']]
  while True:
    try:
      origin = checkpoint.read_meta(folder, step)['origin']
    except (UserError, KeyError):
      return ['an earlier checkpoint, which is not there any more']
    if origin['origin'] == 'scratch':
      return []
    if origin['kind'] != weights.OWN:
      return [origin['kind']]
    folder, _, step = origin['origin'].rpartition(' step ')
    folder, step = epath.Path(folder), int(step)


def _about(model: Trained, m: writing.Model, left_out: Sequence[str]) -> dict[str, Any]:
  """Returns what the card says of the model itself."""
  # the card may go to others: what this machine's folders are called is none of theirs
  c, rows = m.config, {'weights': '/'.join(epath.Path(model.where).parts[-4 if model.step >= 0 else -1 :])}
  if isinstance(c, vit.Config):
    rows['architecture'] = (
      f'ViT, patches of {c.patch_size}, width {c.dim}, {c.depth} blocks, {c.heads} heads, LayerNorm epsilon {c.layer_norm_eps:g}'
    )
  else:
    rows['architecture'] = f'ResNet, {c.blocks} blocks, stem {c.stem}'
  rows['pictures'] = (
    f'RGB, {c.image_size} × {c.image_size}, resized whole ({m.pixels["interpolation"]}, antialiased), '
    f'mean {tuple(m.pixels["mean"])}, standard deviation {tuple(m.pixels["std"])} of 0..1'
  )
  if m.class_names:
    rows['classes'] = ', '.join(m.class_names)
    rows['pooling'] = {'gap': 'mean of the patches', 'cls': 'class token'}.get(m.pool, m.pool)
  written = {name: a.size for name, a in m.tensors.items() if name not in left_out}
  rows['parameters'] = tables.number(sum(written.values()))
  if left_out:
    rows['left out'] = ', '.join(dict.fromkeys(name.rpartition('/')[0] for name in left_out))
  return rows


def write(form: str, model: Trained, preprocess: bool, folder: epath.Path, out: str) -> dict[str, Any]:
  """Writes a model and its card into a folder that is there.

  Args:
    form: one of FORMATS.
    model: the trained one.
    preprocess: of programs.
    folder: on this machine.
    out: what it will be called, for the card.

  Returns:
    What the card says of it.
  """
  m = described(model)
  said = {'inputs': ''}
  if form in writing.WRITERS:
    about = _about(model, m, writing.write(form, m, folder))
  else:
    dtype = np.uint8 if preprocess else np.float32
    found = programs.write(form, forward_of(model, preprocess), m.config.image_size, dtype, folder)
    off = ', '.join(f'{name} {by:.1g}' for name, by in found['largest_difference'].items())
    about = {**_about(model, m, ()), 'largest difference from this model': off}
    pixels = {**m.pixels, 'channels': 'RGB', 'normalises': preprocess}
    files.write_json(folder / 'model.json', {**found, 'class_names': m.class_names, 'pixels': pixels})
    said['inputs'] = f'{np.dtype(dtype).name} [B, {m.config.image_size}, {m.config.image_size}, 3]'
  if form == 'hf':
    said['kind'] = files.read_json(folder / writing.CONFIG)['architectures'][0]
  library, code = CODE[form]
  runs = model.folder.parent.parent
  run = run_lib.read(runs) if model.step >= 0 and (runs / 'config.json').exists() else None
  files.write_whole(
    folder / 'README.md',
    card.text(
      run,
      model.stage_name,
      model.step,
      model.ema,
      about=about,
      kinds=_kinds(model),
      code=code.format(out=os.path.basename(out), **said),
      library=library,
    ),
  )
  for file in folder.iterdir():  # safetensors lets nobody else read what it writes
    shutil.copymode(folder / 'README.md', file)
  return about


def into_new_folder(out: str, fill: Callable[[epath.Path], Any]) -> Any:
  """Fills a folder beside `out` and gives it that name last, so that nobody sees a part of it; returns what `fill` does.

  Raises:
    UserError: when there is something already, or it can't be written.
  """
  folder = epath.Path(out)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"--out is '{out}', which is there already; expected a new or empty folder")
  beside = folder.parent / f'.{folder.name}.{os.getpid()}'
  try:
    beside.mkdir(parents=True)
    found = fill(beside)
    os.replace(beside, folder)
  except OSError as e:
    raise UserError(f"--out '{out}' can not be written ({e.strerror or e})") from e
  finally:
    shutil.rmtree(beside, ignore_errors=True)
  return found


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  parser = cli.Parser('export', __doc__)
  add = parser.add_argument
  add(
    '--checkpoint',
    required=True,
    help="a run's folder, a stage's folder, a checkpoint, or weights with a classifier",
  )
  add('--format', required=True, help=' | '.join(FORMATS))
  add('--out', required=True, help='folder to write, new or empty')
  add('--ema', action='store_true', help='the moving average of the weights instead of the last ones')
  add(
    '--preprocess', action='store_true', help='onnx, stablehlo: take uint8 pictures and normalise them inside'
  )
  given = parser.parse_args(list(argv))
  form = one_of('--format', given.format, FORMATS)
  if given.preprocess and form in writing.WRITERS:
    raise UserError(
      f"--preprocess is of programs, and --format is '{form}'; expected {' or '.join(programs.NEEDS)}"
    )
  if files.is_remote(given.out):
    raise UserError(f"--out is '{given.out}'; expected a folder on this machine")
  programs.check_installed(form)
  model = trained.load(given.checkpoint, sharding.make_mesh(), ema=given.ema)
  writing.check(form, described(model), '--format')
  log.say(f'{model.where} as {form}')
  out = os.path.abspath(given.out)
  about = into_new_folder(out, lambda folder: write(form, model, given.preprocess, folder, out))
  print('\n'.join(f'{name}: {value}' for name, value in about.items()))
  print(f'written: {out}')
