"""HMTL (arXiv 2105.06421; docs/method.md): a self-supervised task beside the supervised one, on the same encoder, in training only.

L = L_sl + w · L_ssl. The task is to say which tile of a puzzled picture stands where, or to paint what was removed of it. The supervised head is a classifier
(`mimic.Plain`) or a regression (`regression`); what is measured, answers and leaves is that head alone. Shapes: B pictures, N = g² tiles, S pixels.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import augment, losses, mixing, models, puzzles
from mimic_jax.models import decoder, flops, heads, resnet, vit
from mimic_jax.objectives import base, mimic, regression
from mimic_jax.objectives.base import Batch
from mimic_jax.report.drawing import Drawing
from mimic_jax.runtime import sharding
from mimic_jax.runtime.errors import UserError

TASKS = ('puzzle', 'inpaint', 'none')
SUPERVISED_ON = ('plain', 'puzzled', 'both')
DECODER_MLP_RATIO = 4.0
DEPTHS = 4  # at which a frozen network's features are compared
ROWS = 8  # pictures drawn for the report


class Perceptual(nnx.Module):
  """A frozen network by whose features a painting is compared with the original."""

  def __init__(self, config: models.EncoderConfig, rngs: nnx.Rngs):
    self.config = config
    self.encoder = config.create(rngs)

  def __call__(self, images: jax.Array) -> list[jax.Array]:
    """Returns features of normalised pictures at four depths, float32 [B, places, C], each place's of length 1."""
    if isinstance(self.config, resnet.Config):
      found = [x.reshape(len(x), -1, x.shape[-1]) for x in self.encoder.maps(images, running=True)]
    else:
      depth = self.config.depth
      taps = sorted({-(-(k + 1) * depth // DEPTHS) - 1 for k in range(DEPTHS)})
      found = [x[:, 1:] for x in self.encoder.tapped(images, taps)]
    return [heads.l2_normalise(x) for x in found]

  def distance(self, a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the squared distance of features of a and b [B, S, S, 3], a mean over pictures, places and depths, float32 []; b's are not differentiated."""
    each = [
      jnp.mean(jnp.sum(jnp.square(x - jax.lax.stop_gradient(y)), axis=-1))
      for x, y in zip(self(a), self(b), strict=True)
    ]
    return sum(each) / len(each)


class Objective(base.Objective):
  """A supervised head and a self-supervised task; see base.py for the contract."""

  CITES: ClassVar = {
    'pourmirzaei2021using': {
      'type': 'misc',
      'title': 'Using Self-Supervised Auxiliary Tasks to Improve Fine-Grained Facial Representation',
      'author': 'Pourmirzaei, Mahdi and Montazer, Gholam Ali and Esmaili, Farzaneh',
      'year': '2021',
      'note': 'arXiv:2105.06421',
    }
  }
  CHOICES: ClassVar = {
    **{k: v for k, v in mimic.Objective.CHOICES.items() if k.startswith(('head.pool', 'mix.'))},
    'regression.loss': losses.REGRESSIONS,
    'hmtl.task': TASKS,
    'hmtl.supervised_on': SUPERVISED_ON,
    'hmtl.permutations': puzzles.PERMUTATIONS,
    'hmtl.hole': puzzles.HOLES,
    'hmtl.perceptual_preset': (*resnet.PRESETS, *vit.PRESETS),
  }
  RANGES: ClassVar = {
    **{k: v for k, v in mimic.Objective.RANGES.items() if k.startswith('mix.')},
    **regression.Objective.RANGES,
    'hmtl.weight': (0, float('inf')),
    'hmtl.grid': (2, 4),
    'hmtl.gap': (0, float('inf')),
    'hmtl.decoder_depth': (1, 100),
  }

  @classmethod
  def defaults(cls) -> ConfigDict:
    """Returns classification with puzzling in the fine-tuning of `mimic`, one crop of each picture."""
    s = mimic.Plain.defaults()
    s.objective = 'hmtl'
    s.mix = mimic.Objective.defaults().mix.copy_and_resolve_references()
    s.mix.unlock()
    s.mix.probability = 0.0  # that a batch is mixed before the task is made of it; of classes
    s.regression = regression.Objective.defaults().regression.copy_and_resolve_references()
    s.regression.unlock()
    s.regression.targets = ''  # '' = the head is a classifier; else a regression of these
    s.hmtl = ConfigDict()
    s.hmtl.task = 'puzzle'  # puzzle | inpaint | none (the supervised head alone)
    s.hmtl.weight = 1.0  # w; the paper has .3 and 1
    s.hmtl.supervised_on = 'both'  # plain | puzzled (as the task has the picture, with its hole, too) | both (the mean of the losses)
    s.hmtl.grid = 2  # g, tiles to a side: of puzzles, and of holes that are tiles
    s.hmtl.permutations = 'all'  # all (N!, uniform) | far (100 that are far apart)
    s.hmtl.gap = 0  # pixels that each tile is narrower by, at a uniform place, filled by mirroring
    s.hmtl.allow_seams = False  # of a ViT: tiles that are no whole patches
    s.hmtl.hole = 'square'  # square (a quarter of the side) | tiles (each with probability .5)
    s.hmtl.perceptual = (
      ''  # weights of a frozen network that compares painting and original; '' = pixels alone
    )
    s.hmtl.perceptual_preset = 'resnet18'  # what that is; a resnet with stem 7x7
    s.hmtl.decoder_dim = 256  # of what paints: of a ViT's decoder, MAE's; of the first transposed convolution of a ResNet's, each next has half
    s.hmtl.decoder_depth = 2  # of a ViT's
    s.hmtl.decoder_heads = 4
    return s.lock()

  def __init__(self, stage: Mapping[str, Any], model: Mapping[str, Any], class_names: tuple[str, ...]):
    self.stage = stage
    self.h = h = stage['hmtl']
    classes = not stage['regression']['targets'].strip()
    self.head = (mimic.Plain if classes else regression.Objective)(stage, model, class_names)
    self.labelled, self.classifier = classes, self.head.classifier
    self.config, self.class_names, self.pairs = self.head.config, self.head.class_names, self.head.pairs
    self.is_vit = isinstance(self.config, vit.Config)
    self.task = h['task']
    self._check_effects(classes)
    if self.task == 'puzzle' or (self.task == 'inpaint' and h['hole'] == 'tiles'):
      self._check_tiles()
    if self.task == 'inpaint':
      self._check_painting()
    self.FIGURES = {
      **self.head.FIGURES,
      'supervised': base.Figure('Supervised loss', term=True),
      'puzzle': base.Figure('Loss of the puzzle', term=True),
      'painted': base.Figure('Absolute error of what was removed', term=True),
      'perceptual': base.Figure('Distance of features', term=True),
      'tiles_placed': base.Figure('Tiles placed right', share=True),
    }
    self._drawn = jax.jit(self._pictures, static_argnums=0)

  def _check_effects(self, classes: bool) -> None:
    """Raises UserError for a field that is not at its default where it has no effect."""
    h, usual, task = self.h, type(self).defaults(), self.task
    of_tiles = task == 'puzzle' or (task == 'inpaint' and h['hole'] == 'tiles')
    used = {
      **dict.fromkeys(('weight', 'supervised_on'), task != 'none'),
      'grid': of_tiles,
      **dict.fromkeys(('permutations', 'gap'), task == 'puzzle'),
      'allow_seams': task == 'puzzle' and self.is_vit,
      **dict.fromkeys(('hole', 'perceptual', 'decoder_dim'), task == 'inpaint'),
      'perceptual_preset': task == 'inpaint' and bool(h['perceptual']),
      **{f'decoder_{k}': task == 'inpaint' and self.is_vit for k in ('depth', 'heads')},
    }
    fields = [('hmtl', name, effect) for name, effect in used.items()]
    fields += [('regression', name, not classes) for name in ('loss', 'scale')]
    fields += [('mix', 'probability', classes)]
    for section, name, effect in fields:
      value, default = self.stage[section][name], usual[section][name]
      if not effect and value != default:
        raise UserError(
          f'{section}.{name} is {value!r}; expected {default!r}, its default: it has no effect here'
        )

  def _check_tiles(self) -> None:
    h, size = self.h, self.config.image_size
    if size % h['grid']:
      raise UserError(f'hmtl.grid is {h["grid"]}; expected a divisor of model.image_size, {size} pixels')
    side = size // h['grid']
    if self.task != 'puzzle':
      return
    if 2 * h['gap'] > side:
      raise UserError(f'hmtl.gap is {h["gap"]}; expected at most {side // 2}, half a tile')
    if self.is_vit and side % self.config.patch_size and not h['allow_seams']:
      raise UserError(
        f'hmtl.grid is {h["grid"]}: tiles of {side} pixels are no whole patches of {self.config.patch_size}, and a ViT would see the seams; '
        'expected another grid, or hmtl.allow_seams=True'
      )

  def _check_painting(self) -> None:
    h, size = self.h, self.config.image_size
    if size < 4:
      raise UserError(f'model.image_size is {size}; expected at least 4 pixels for hmtl.hole')
    if self.is_vit:
      models.check_dim('hmtl.decoder_dim', h['decoder_dim'], 'hmtl.decoder_heads', h['decoder_heads'])
    elif size % self.config.shrinks:
      raise UserError(
        f'model.image_size is {size}; expected a multiple of {self.config.shrinks} for hmtl.task inpaint with a ResNet'
      )
    elif (dim := h['decoder_dim']) < 1 or dim % (halved := self.config.shrinks // 2):
      raise UserError(f'hmtl.decoder_dim is {dim}; expected a positive multiple of {halved}')
    if h['perceptual']:
      c = self._perceptual_config
      if isinstance(c, vit.Config) and size % c.patch_size:
        raise UserError(
          f"hmtl.perceptual_preset is '{h['perceptual_preset']}'; expected a network whose patches, {c.patch_size} pixels here, "
          f'divide model.image_size, {size}'
        )

  @property
  def _perceptual_config(self) -> models.EncoderConfig:
    name, size, dtype = self.h['perceptual_preset'], self.config.image_size, self.config.dtype
    if name in resnet.PRESETS:
      return resnet.Config(size, *resnet.PRESETS[name], stem='7x7', dtype=dtype)
    sizes = dict(zip(('patch_size', 'dim', 'depth', 'heads'), vit.PRESETS[name], strict=True))
    return vit.Config(image_size=size, dtype=dtype, **sizes)

  @property
  def _decoder_config(self) -> vit.Config:
    sizes = {name: self.h[f'decoder_{name}'] for name in ('dim', 'depth', 'heads')}
    return self.config._replace(
      **sizes, mlp_ratio=DECODER_MLP_RATIO, drop_path=0.0, layer_scale=0.0, registers=0
    )

  @property
  def _widths(self) -> tuple[int, ...]:
    return tuple(self.h['decoder_dim'] >> n for n in range((self.config.shrinks - 1).bit_length()))

  @property
  def _views(self) -> int:
    """How many forms of a picture go through the encoder: plain and as the task has it, or one."""
    return 1 if self.task == 'none' or self.h['supervised_on'] == 'puzzled' else 2

  def inputs(self) -> Mapping[str, base.Crops | base.Target]:
    """What the supervised head takes."""
    return self.head.inputs()

  def flops_per_image(self) -> float:
    """Returns those of the supervised head on each form that it sees, and of the task's branch; of a frozen network two passes and one back to the pixels."""
    D, on = self.config.dim, self.h['supervised_on']
    answers = len(self.class_names) if self.labelled else len(self.head.names)
    each = self._views * self.config.flops()
    each += (2 if on == 'both' and self.task != 'none' else 1) * flops.linear(1, D, answers)
    if self.task == 'puzzle':
      each += flops.linear(1, D, self.h['grid'] ** 4)
    elif self.task == 'inpaint':
      if self.is_vit:
        each += decoder.flops_of(D, self._decoder_config, self.config.grid**2)
      else:
        each += decoder.painter_flops(D, self._widths, self.config.image_size // self.config.shrinks)
      if self.h['perceptual']:
        each += (
          self._perceptual_config.flops()
        )  # once on each of two, once back: three, as of what is trained
    return flops.TRAINING * each

  def init(self, key: jax.Array) -> nnx.Module:
    """Returns a fresh model: the head's, with the task's branch beside it."""
    head_key, task_key = jax.random.split(key)
    model, rngs = self.head.init(head_key), nnx.Rngs(task_key)
    if self.task == 'puzzle':
      model.places = vit.linear(
        self.config.dim, self.h['grid'] ** 4, 'float32', rngs
      )  # N heads of N, side by side
    elif self.task == 'inpaint' and self.is_vit:
      model.painter = decoder.Decoder(self.config.dim, self._decoder_config, rngs)
    elif self.task == 'inpaint':
      model.painter = decoder.Painter(self.config.dim, self._widths, self.config.dtype, rngs)
    return model

  def trainable(self, path: tuple[str, ...]) -> bool:
    """Everything but the fixed positions of a ViT's decoder."""
    return path != ('painter', 'pos_embed') and self.head.trainable(path)

  def initial(self, path: tuple[str, ...]) -> str | tuple[str, tuple[str, ...]]:
    """As the supervised head; the task's branch is taken of a run with such a one."""
    return 'if_whole' if path[0] in ('places', 'painter') else self.head.initial(path)

  def frozen(self) -> dict[str, base.Frozen]:
    """The network that compares painting and original."""
    if not self.h['perceptual']:
      return {}
    config = self._perceptual_config
    network = lambda key: Perceptual(config, nnx.Rngs(key))  # noqa: E731
    return {'perceptual': base.Frozen(self.h['perceptual'], 'hmtl.perceptual', network, measured=False)}

  def augment(self, batch: Batch, key: jax.Array) -> Batch:
    """One crop of each picture with its label or targets: as the supervised head."""
    return self.head.augment(batch, key)

  def loss(
    self, model: Any, batch: Batch, key: jax.Array, step: jax.Array, total_steps: int
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L_sl + w · L_ssl. Plain pictures and those of the task are encoded as one batch [D]: its statistics are of both.

    Args:
      model: of this objective; its batch statistics are updated.
      batch: from `augment`.
      key: of this step.
      step, total_steps: not used.

    Returns:
      The loss, float32 [], and its parts and statistics.
    """
    del step, total_steps
    mix_key, drop_key, task_key = jax.random.split(key, 3)
    if self.stage['mix']['probability'] > 0:
      mixed = mixing.mix(mix_key, batch['image'], batch['label'], **self.stage['mix'])
      batch = {**batch, 'image': mixed.x, 'label': mixed.y[:, 0]}
    plain = batch['image'][:, 0]
    if self.task == 'none':
      return self._supervised(model, model.features(plain, drop_key), batch)
    seen, made = self._made(task_key, plain)
    forms = (seen,) if self._views == 1 else (plain, seen)
    x = jnp.stack(forms, axis=1)
    features, places = self._encoded(model, x.reshape(-1, *x.shape[2:]), drop_key)
    features, places = (a.reshape(len(plain), len(forms), *a.shape[1:]) for a in (features, places))

    supervised, said = self._supervised(model, features[:, 0], batch)
    if self.h['supervised_on'] == 'both':
      supervised = 0.5 * (supervised + self._supervised(model, features[:, 1], batch)[0])
    if self.task == 'puzzle':
      task, parts = self._placed(model, features[:, -1], made)
    else:
      task, parts = self._painted(model, places[:, -1], plain, made, running=False)
    return supervised + self.h['weight'] * task, {**said, 'supervised': supervised, **parts}

  def _supervised(
    self, model: Any, features: jax.Array, batch: Batch
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the supervised loss of features float32 [B, D], and statistics."""
    if not self.labelled:
      return self.head.head_loss(model, features, batch)
    logits, y = model.classifier(features), batch['label']
    right = jnp.argmax(logits, axis=-1) == jnp.argmax(y, axis=-1)
    return losses.soft_cross_entropy(logits, y), {'accuracy': jnp.mean(right.astype(jnp.float32))}

  def _made(self, key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns pictures as the task has them, and what it asks for: the tiles' order, int [B, N], or what was removed, bool [B, S, S]."""
    h, count, size = self.h, len(x), self.config.image_size
    order_key, gap_key = jax.random.split(key)
    if self.task == 'puzzle':
      tiles = h['grid'] ** 2
      order = sharding.along_batch(puzzles.orders(order_key, count, tiles, h['permutations']))
      offsets = jax.random.randint(gap_key, (count, tiles, 2), 0, h['gap'] + 1) if h['gap'] else None
      return puzzles.puzzled(x, order, offsets, h['gap']), order
    gone = sharding.along_batch(puzzles.holes(order_key, count, size, h['hole'], h['grid']))
    return jnp.where(gone[..., None], 0.0, x), gone  # 0 is the mean colour of the data

  def _encoded(self, model: Any, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns the pooled features, as `model.features` does, and what a painter sees: the last map [N, h, w, D] or a ViT's tokens behind its norm."""
    if not self.is_vit:
      places = model.encoder(x, running=key is None)
      return sharding.along_batch(jnp.mean(places, axis=(1, 2), dtype=jnp.float32)), places
    tokens = model.encoder(x, key=key, norm=False)
    normed = model.encoder.norm(tokens)
    if model.pool == 'cls':
      return sharding.along_batch(normed[:, 0].astype(jnp.float32)), normed
    pooled = jnp.mean(tokens[:, 1:].astype(jnp.float32), axis=1)
    return model.fc_norm(sharding.along_batch(pooled)), normed

  def _placed(
    self, model: Any, features: jax.Array, order: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the mean over places of the cross-entropy of N heads of N classes, and the share of tiles that are told right."""
    z = model.places(features).reshape(*order.shape, -1)
    at = jax.nn.one_hot(order, order.shape[1])
    loss = -jnp.mean(jnp.sum(at * jax.nn.log_softmax(z, axis=-1), axis=-1))
    right = jnp.argmax(z, axis=-1) == order
    return loss, {'puzzle': loss, 'tiles_placed': jnp.mean(right.astype(jnp.float32))}

  def _painting(self, model: Any, places: jax.Array, running: bool) -> jax.Array:
    """Returns what is painted from an encoder's places, float32 [B, S, S, 3], normalised."""
    if not self.is_vit:
      return model.painter(places, running)
    L = self.config.grid**2
    every = jnp.broadcast_to(jnp.arange(L)[None], (len(places), L))
    patches = model.painter(places, every).astype(jnp.float32)
    return vit.unpatchify(patches, self.config.patch_size, (self.config.grid, self.config.grid))

  def _painted(
    self, model: Any, places: jax.Array, x: jax.Array, gone: jax.Array, running: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the absolute error of what was removed, a mean over each picture's and over the pictures, plus the distance of features of the whole painting."""
    painting = self._painting(model, places, running)
    off = jnp.where(gone[..., None], jnp.abs(painting - x), 0.0).sum(axis=(1, 2, 3))
    pixels = jnp.mean(off / (3 * jnp.maximum(gone.sum(axis=(1, 2)), 1)))
    if not self.h['perceptual']:
      return pixels, {'painted': pixels}
    features = model.perceptual.distance(painting, x)
    return pixels + features, {'painted': pixels, 'perceptual': features}

  def evaluate(self, model: Any, batch: Batch) -> dict[str, dict[str, jax.Array]]:
    """As the supervised head."""
    return self.head.evaluate(model, batch)

  def answers(self, model: Any, images: jax.Array) -> dict[str, jax.Array]:
    """As the supervised head."""
    return self.head.answers(model, images)

  def figures(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """As the supervised head."""
    return self.head.figures(outputs)

  def facts(self) -> dict[str, Any]:
    """As the supervised head."""
    return self.head.facts()

  def notes(self, facts: Mapping[str, Any]) -> list[str]:
    """As the supervised head."""
    return self.head.notes(facts)

  def attention(self, model: Any, images: jax.Array) -> jax.Array | None:
    """As the supervised head."""
    return self.head.attention(model, images)

  def look(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Drawing]:
    """As the supervised head."""
    return self.head.look(model, batch)

  def draw(self, model: Any, batch: Mapping[str, Any], key: jax.Array) -> dict[str, Drawing]:
    """Returns what the supervised head does, and a few pictures as the task has them, with what is painted."""
    found = self.head.draw(model, batch, key)
    if self.task == 'none':
      return found
    template, params, rest = models.split(model, self.trainable)
    pictures = jax.device_get(self._drawn(template, params, rest, batch['image'][:ROWS], key))
    a = self.stage['augment']
    titles = ('picture', 'puzzle') if self.task == 'puzzle' else ('picture', 'with a hole', 'painting')
    said = {
      'puzzle': 'What the tiles of a picture may be made into: the encoder is to say which one stands where.',
      'inpaint': 'What is removed of a picture (grey), and what is painted from what the encoder saw.',
    }[self.task]
    shown = augment.to_uint8(pictures, a['mean'], a['std'])
    return {**found, 'task': Drawing('The task beside', said, shown, titles)}

  def _pictures(
    self, template: models.Template, params: Any, rest: Any, images: jax.Array, key: jax.Array
  ) -> jax.Array:
    """Returns normalised pictures, float32 [B, 2 or 3, S, S, 3]: as they are, as the task has them, painted."""
    x = self._seen(images)
    seen, _ = self._made(key, x)
    if self.task == 'puzzle':
      return jnp.stack([x, seen], axis=1)
    model = models.merge(template, params, rest)
    _, places = self._encoded(model, seen, None)
    return jnp.stack([x, seen, self._painting(model, places, running=True)], axis=1)
