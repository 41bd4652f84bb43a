"""The contract of an objective: what can be learned, as the loop, the evaluation and the report see it.

An ordinary objective fills in its section (`defaults`, `__init__`), `init`, `augment`, `loss` and `evaluate`; the rest has defaults. `augment`, `loss` and
`evaluate` are traced inside jax.jit over global, sharded arrays. An objective sees no optimiser, no mesh and no file system.
"""

import abc
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import augment, models
from mimic_jax.clips import Frames
from mimic_jax.models import flops
from mimic_jax.report.drawing import Drawing
from mimic_jax.runtime.errors import UserError

Batch = dict[str, jax.Array]
Path = tuple[str, ...]


class Crops(NamedTuple):
  """Crops of each picture that a batch must hold, [B, views, size, size, 3]; a size of 0 is that of the encoder."""

  views: int = 1
  size: int = 0


class Target(NamedTuple):
  """An array that a source offers of each picture by this name, float32 [B, *shape].

  'landmarks' (landmarks.py) go along with crops that are made on the host: [B, views, 68, 2] in pixels of these.
  """

  shape: tuple[int, ...] = ()


class Figure(NamedTuple):
  """What a figure that `loss` or `evaluate` gives is, for the report.

  Its title, whether it is a share of 1, a term of the loss; its unit, and what a reader must know of it.
  """

  title: str
  share: bool = False
  term: bool = False
  unit: str = ''
  note: str = ''


class Frozen(NamedTuple):
  """A network read from a weight file or an earlier stage of the run, which nothing changes: an argument of the step, never in a checkpoint.

  Attributes:
    path: of the file; or the name of an earlier stage of the run, which makes it.
    field: of the stage's section that holds the path, for errors.
    init: key → the network; of shapes only.
    initial: what it takes from the file, as `Objective.initial`.
    measured: whether `evaluate`, `answers` or `look` use it; without, whoever reads a checkpoint of the stage does not need its file.
  """

  path: str
  field: str
  init: Callable[[jax.Array], nnx.Module]
  initial: Callable[[Path], str | tuple[str, Path]] = lambda path: 'needed'
  measured: bool = True


def check_idle(stage: Mapping[str, Any], usual: Mapping[str, Any], rules: Iterable[tuple[Any, ...]]) -> None:
  """Raises UserError for a field that is not at its default where it has no effect.

  Args:
    stage: its section.
    usual: the objective's defaults.
    rules: (field, another one, values of the other under which the first has no effect …).
  """
  value = lambda section, path: functools.reduce(operator.getitem, path.split('.'), section)  # noqa: E731
  for field, other, *idle in rules:
    if value(stage, other) in idle and value(stage, field) != value(usual, field):
      raise UserError(
        f'{field} is {value(stage, field)!r}, and {other} {value(stage, other)!r}; '
        f'expected {value(usual, field)!r}, its default, where it has no effect'
      )


class Objective(abc.ABC):
  """What is learned.

  Args:
    stage: a stage's section of the config.
    model: the encoder's section.
    class_names: of the training source; () when it has no labels.

  Attributes:
    CHOICES: field of its section ('contrast.distance') → the words it may be.
    RANGES: field → (lowest, highest), both allowed.
    FIGURES: what the figures are that `loss` gives; one that is not here is shown by its name.
    CITES: what it is from: fields of BibTeX entries by key (report/citations.py has those of many).
    labelled: whether it learns from labels; an instance may say so where its section decides.
    classifier: path of its model's layer whose last axis is the classes; () where it has none.
    pairs: whether its loss puts pictures of a batch together, which is then not computed in parts (`accumulate`).
    pictures: of one group (the frames of a clip, say) that an item of a batch holds; with more than one, arrays are
      [B, pictures, …].
    frames: which `pictures` of a clip an item holds, where their order in the group says (clips.py); an epoch is then each clip once. None:
      the one whose turn it is and others of its group.
    pool: what `answers` reads of the encoder, unless it is defined anew: 'gap' or 'cls', a ViT's class token behind the last norm.
    stage: its section, as given.
    config: of its encoder.
    class_names: of its classifier, where it is labelled.
  """

  CHOICES: ClassVar[Mapping[str, Sequence[str]]] = {}
  RANGES: ClassVar[Mapping[str, tuple[float, float]]] = {}
  FIGURES: ClassVar[Mapping[str, Figure]] = {}
  CITES: ClassVar[Mapping[str, Mapping[str, str]]] = {}
  labelled = False
  classifier: ClassVar[Path] = ()
  pairs = False
  pictures = 1
  frames: Frames | None = None
  pool: ClassVar = 'gap'
  stage: Mapping[str, Any]
  config: models.EncoderConfig
  class_names: tuple[str, ...] = ()

  @abc.abstractmethod
  def __init__(self, stage: Mapping[str, Any], model: Mapping[str, Any], class_names: tuple[str, ...]): ...

  @classmethod
  @abc.abstractmethod
  def defaults(cls) -> ConfigDict:
    """Returns the section that a stage with it begins as: `defaults.stage()` and its own fields, locked."""

  @classmethod
  def uses(cls, facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> list[tuple[str, ConfigDict]]:
    """Returns what `mimic weights inspect` holds a weight file against when no config is named.

    Args:
      facts: of the file (weights/facts.py).
      tensors: by our names.

    Returns:
      (title, section of a stage); by default nothing.
    """
    del facts, tensors
    return []

  def inputs(self) -> Mapping[str, Crops | Target]:
    """Returns what a batch must hold beside label and index, by name."""
    return {'image': Crops()}

  @property
  def targets(self) -> dict[str, Target]:
    """What a source must offer beside the label."""
    return {name: what for name, what in self.inputs().items() if isinstance(what, Target)}

  def flops_per_image(self) -> float:
    """Returns the operations that a picture takes in a step, forward and backward (models/flops.py); an item has `pictures` of them.

    By default those of the encoder on every crop; what is frozen, or not differentiated, is counted once.
    """
    crops = sum(what.views for what in self.inputs().values() if isinstance(what, Crops))
    return flops.TRAINING * crops * self.config.flops()

  @abc.abstractmethod
  def init(self, key: jax.Array) -> nnx.Module:
    """Returns a fresh model; it has `.encoder`, so that one stage can hand over to the next."""

  @abc.abstractmethod
  def augment(self, batch: Batch, key: jax.Array) -> Batch:
    """Returns what `loss` needs of a batch.

    Args:
      batch: 'image' and what else `inputs` names, 'label' and 'index'. Of a source whose pictures have one size 'image' is
        the whole picture, uint8 [B, H, W, 3], and the only one: its crops are made here; else each is cropped, uint8
        [B, V, S, S, 3].
      key: of this step.
    """

  @abc.abstractmethod
  def loss(
    self, model: Any, batch: Batch, key: jax.Array, step: jax.Array, total_steps: int
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss, float32 [], and its parts and statistics, a scalar each.

    Args:
      model: of this objective; what of it is not trained (statistics, a momentum branch) may be updated.
      batch: from `augment`.
      key: of this step.
      step: int32 [], from 0.
      total_steps: of the stage.
    """

  @abc.abstractmethod
  def evaluate(self, model: Any, batch: Batch) -> dict[str, dict[str, Any]]:
    """Returns what a batch of an evaluation adds.

    Args:
      model: of this objective.
      batch: 'image' uint8 [B, H, W, 3], what else `inputs` asks of the source, 'label', 'index' int [B], 'mask' bool
        [B], False on padding. Pictures come one by one here, whatever `pictures` is.

    Returns:
      'sums': {name: (total, count)}, of which a split's figure is total / count over all batches; among them 'loss', unless `figures` gives it.
      'outputs': {name: [B, …]} of each picture, kept in predictions.npz; with 'logits' [B, K] it is a classifier, and
        'features' [B, D] are shown as a t-SNE. 'predicted_NAME' [B] with 'true_NAME' [B], NaN where unknown, are a target's answers, of which
        scores are made (metrics.SCORES_OF); 'chance_NAME' likewise of a target that is 0 or 1.
    """

  def answers(self, model: Any, images: jax.Array) -> dict[str, jax.Array]:
    """Returns what a model says of pictures alone, which is what leaves as a program (`mimic export`).

    Args:
      model: of this objective.
      images: float32 [B, S, S, 3], normalised, of the encoder's size.

    Returns:
      {name: float32 [B, …]}: 'features' [B, D], 'logits' [B, K] of a classifier; by default the features of the encoder.
    """
    return {'features': model.encoder.features(images, pool=self.pool)}

  def _seen(self, images: jax.Array) -> jax.Array:
    """Returns pictures as an evaluation gives them to the encoder: uint8 [B, H, W, 3] → float32 [B, S, S, 3]."""
    a = self.stage['augment']
    return augment.evaluation_view(images, self.config.image_size, a['interpolation'], a['mean'], a['std'])

  def facts(self) -> dict[str, Any]:
    """Returns what its model's tensors don't show and whoever rebuilds it must know, by the names of weights/facts.py.

    'pool' of a classifier ('gap', with a norm of its own in a ViT, or 'cls'); by default nothing.
    """
    return {}

  def figures(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns a split's figures that are no total / count, such as a correlation.

    Args:
      outputs: of `evaluate`, and 'label', of all pictures of the split, in its order.
    """
    del outputs
    return {}

  def trainable(self, path: Path) -> bool:
    """Returns whether the parameter at a path of names is trained; by default all are."""
    del path
    return True

  def group(self, path: Path) -> str:
    """Returns which of the stage's optimisers moves the parameter at a path: '' is `optim`, 'x' is `optim_x`."""
    del path
    return ''

  def decays(self, path: Path, ndim: int, tokens: bool) -> bool:
    """Returns whether the parameter at a path gets weight decay; by default as the encoder's kind has it.

    Args:
      path: of names.
      ndim: its number of axes.
      tokens: whether class and mask tokens get it, too (optim.decay_tokens).
    """
    return self.config.decays(path, ndim, tokens)

  @property
  def layers(self) -> int:
    """The last layer's number, for layer-wise decay of the learning rate."""
    return self.config.layers

  def layer_id(self, path: Path) -> int | Sequence[int]:
    """Returns the layer of the parameter at a path, or those of its first axis; what is no part of the encoder is last."""
    return self.config.layer_id(path[1:]) if path[0] == 'encoder' else self.layers

  def initial(self, path: Path) -> str | tuple[str, Path]:
    """Returns what the parameter at a path takes from initial weights; by default the encoder and nothing else.

    'needed': an error where they lack it; 'if_whole': only if all such of its top-level module fit; 'fresh': nothing.
    With another path beside the word that one of the weights is taken: a momentum encoder starts as the encoder.
    """
    return 'needed' if path[0] == 'encoder' else 'fresh'

  def notes(self, facts: Mapping[str, Any]) -> list[str]:
    """Returns what is to be said of initial weights by what is known of them (weights/facts.py); by default nothing."""
    del facts
    return []

  def frozen(self) -> Mapping[str, Frozen]:
    """Returns the networks read from files; `loss` and `evaluate` find each as an attribute of the model, by its name."""
    return {}

  def attention(self, model: Any, images: jax.Array) -> jax.Array | None:
    """Returns from where in each picture the answer drew, float32 [B, h, w] of 0 and above; by default None: not known.

    Args:
      model: of this objective.
      images: as for `answers`.
    """
    del model, images
    return None

  def draw(self, model: Any, batch: Mapping[str, Any], key: jax.Array) -> dict[str, Drawing]:
    """Returns what the report of a stage shows of a batch as `evaluate` gets it; by default what `look` does."""
    del key
    return self.look(model, batch)

  def look(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Drawing]:
    """Returns what the report of an evaluation shows: nothing that is drawn at random; by default nothing."""
    del model, batch
    return {}
