"""A trained model that answers for pictures: classes, features, attention, faces.

model = mimic_jax.load('runs/mine')
model.predict(['a.jpg', 'b.png'])
model.embed('a.jpg')
"""

import concurrent.futures
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from PIL import Image

from mimic_jax.data.bad_image import BadImage
from mimic_jax.runtime import compile_cache, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.serving import faces, pictures
from mimic_jax.training import evaluation, log, trained
from mimic_jax.training.trained import Trained

BATCH_IMAGES = 64
SEEN = 512  # pixels

Step = Callable[..., dict[str, Any]]  # of evaluation.make_step


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a model says of a picture, or of a face in one.

  Attributes:
    id: the picture's path, or its place among those given, '0', '1', …
    label: the likeliest class.
    probability: of it, 0..1.
    probabilities: of every class; they add up to 1.
    box: of the face, (left, top, width, height) in pixels of the upright picture; None for a whole picture.
    score: the detector's, 0..1; None likewise.
    error: why there is no answer, '' where there is one; then the label is '', the probability NaN.
    seen, attention: where asked for, what the model was shown, uint8 [H, W, 3], its long side at most SEEN pixels, and
      from where in it the answer drew, float32 [h, w].
  """

  id: str
  label: str
  probability: float
  probabilities: dict[str, float]
  box: tuple[float, float, float, float] | None = None
  score: float | None = None
  error: str = ''
  seen: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
  attention: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)


class Model:
  """A trained model on this machine's devices; `load` makes one.

  Attributes:
    trained: the model and how it was made.
    class_names: of the classifier, in its order; () where there is none.
    image_size: side in pixels of what the model sees; whatever it is given is resized to it.
  """

  def __init__(self, found: Trained, mesh: Mesh) -> None:
    self.trained = found
    self.class_names = found.class_names
    self.image_size = int(found.reading['image_size'])
    self._mesh = mesh
    self._answer, self._attention = (
      evaluation.make_step(function, found.template, mesh, found.frozen)
      for function in (self._answered, self._attended)
    )

  def predict(self, images: Any, *, batch_images: int = BATCH_IMAGES) -> list[Prediction]:
    """Returns the answer for each picture.

    Args:
      images: a path, a PIL picture, an array uint8 [H, W, 3] (RGB) or [H, W], or several of these. A picture is read
        and resized as in an evaluation: whole and upright.
      batch_images: computed at a time.

    Raises:
      UserError: for what is no picture or can't be read, and where the model has no classifier.
    """
    return [one for (one,) in _whole(self.answers(images, batch_images=batch_images))]

  def predict_faces(
    self, images: Any, cutter: faces.Cutter | None = None, *, batch_images: int = BATCH_IMAGES
  ) -> list[list[Prediction]]:
    """Returns the answers for the faces of each picture, the surest face first; [] where none is found.

    Args:
      images, batch_images: as for `predict`.
      cutter: finds and cuts out faces; by default as the model's record says that those of its training were.

    Raises:
      UserError: as `predict`, and where what finds faces is not installed.
    """
    cutter = cutter or faces.Cutter(self.trained.reading)
    return _whole(self.answers(images, cutter=cutter, batch_images=batch_images))

  def answers(
    self,
    images: Any,
    *,
    ids: Sequence[str] = (),
    cutter: faces.Cutter | None = None,
    attention: bool = False,
    batch_images: int = BATCH_IMAGES,
  ) -> list[list[Prediction]]:
    """Returns the answers for each picture: one for the whole, or with a cutter one for each face.

    One that can't be read has one answer with an `error`.

    Args:
      images, batch_images: as for `predict`.
      ids: names of the pictures; by default their paths, or '0', '1', ….
      cutter: as for `predict_faces`; None = whole pictures.
      attention: whether to show, too, what the model was shown and from where in it its answer drew.

    Raises:
      UserError: as `predict`, but not for a picture that can't be read; with `attention` of a model that can't say.
    """
    if not self.class_names:
      raise UserError(
        f'{self.trained.where} has no classifier (its objective is {self.trained.stage.objective}); expected a fine-tuned '
        'model, or embed() for features'
      )
    given = pictures.in_a_row(images)
    ids = ids or _ids(given)
    if cutter is not None:
      return self._of_faces(given, ids, cutter, attention, batch_images)
    logits, errors = self._outputs(self._answer, 'logits', given, ids, batch_images)
    chances = np.asarray(jax.nn.softmax(logits, axis=-1))
    answers = [
      _failed(ids[k], errors[k]) if k in errors else self._said(ids[k], chances[k]) for k in range(len(given))
    ]
    if attention:
      maps, _ = self._outputs(self._attention, 'attention', given, ids, batch_images)
      source = pictures.Pictures(given, ids)
      answers = [
        one if one.error else dataclasses.replace(one, seen=_small(source[k]['image']), attention=maps[k])
        for k, one in enumerate(answers)
      ]
    return [[one] for one in answers]

  def _of_faces(
    self,
    given: Sequence[pictures.Picture],
    ids: Sequence[str],
    cutter: faces.Cutter,
    attention: bool,
    batch_images: int,
  ) -> list[list[Prediction]]:
    source = pictures.Pictures(given, ids)

    def look(i: int) -> list[faces.Found] | BadImage:
      try:
        return cutter(Image.fromarray(source[i]['image']))
      except BadImage as e:
        return e

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      found = list(pool.map(look, range(len(source))))
    cut = [face.image for one in found if isinstance(one, list) for face in one]
    answers = self.answers(cut, attention=attention, batch_images=batch_images) if cut else []
    said = itertools.chain.from_iterable(answers)
    return [
      [_failed(name, str(one))]
      if isinstance(one, BadImage)
      else [dataclasses.replace(next(said), id=name, box=face.box, score=face.score) for face in one]
      for name, one in zip(ids, found)
    ]

  def _said(self, name: str, chances: np.ndarray) -> Prediction:
    best = int(chances.argmax())
    probabilities = dict(zip(self.class_names, map(float, chances), strict=True))
    return Prediction(name, self.class_names[best], float(chances[best]), probabilities)

  def embed(self, images: Any, *, batch_images: int = BATCH_IMAGES) -> np.ndarray:
    """Returns features of each picture, float32 [n, D]: what the objective calls so, what its classifier reads.

    Of a model without any they are the mean of its encoder's patch tokens, or of a ResNet's last map.

    Args:
      images, batch_images: as for `predict`.

    Raises:
      UserError: as `predict`.
    """
    return self._each(self._answer, 'features', images, batch_images)

  def attention(self, images: Any, *, batch_images: int = BATCH_IMAGES) -> np.ndarray:
    """Returns from where in each picture the answer drew, float32 [n, h, w], of patches row by row.

    Args:
      images, batch_images: as for `predict`.

    Raises:
      UserError: as `predict`, and of a model that can't say.
    """
    return self._each(self._attention, 'attention', images, batch_images)

  def _answered(self, model: nnx.Module, batch: dict[str, jax.Array]) -> dict[str, Any]:
    return {'sums': {}, 'outputs': self.trained.objective.answers(model, self.trained.seen(batch['image']))}

  def _attended(self, model: nnx.Module, batch: dict[str, jax.Array]) -> dict[str, Any]:
    maps = self.trained.objective.attention(model, self.trained.seen(batch['image']))
    if maps is None:
      raise UserError(
        f'{self.trained.where} can not show attention; expected a fine-tuned ViT (its objective is '
        f'{self.trained.stage.objective}, its encoder {self.trained.config.model.preset})'
      )
    return {'sums': {}, 'outputs': {'attention': maps}}

  def _each(self, step: Step, name: str, images: Any, batch_images: int) -> np.ndarray:
    given = pictures.in_a_row(images)
    rows, errors = self._outputs(step, name, given, _ids(given), batch_images)
    if errors:
      raise UserError(f'{next(iter(errors.values()))}; expected a picture')
    return rows

  def _outputs(
    self,
    step: Step,
    name: str,
    given: Sequence[pictures.Picture],
    ids: Sequence[str],
    batch_images: int,
  ) -> tuple[np.ndarray, dict[int, str]]:
    """Returns one output, [n, …], of each picture, NaN where it can't be read, and of those why."""
    if not given:
      raise UserError('images is empty; expected at least one picture')
    if batch_images < 1:
      raise UserError(f'batch_images is {batch_images}; expected at least 1')
    # Pictures that have the size of all of the training's are resized on the device, as there; others by the reader.
    shape = self.trained.reading.get('image_shape')
    alike = np.zeros(len(given), bool)
    if shape is not None:
      source = pictures.Pictures(given, ids)
      alike[:] = [source.size(i) == tuple(shape) for i in range(len(given))]
    rows, errors = None, {}
    for these, at in ((alike, tuple(shape or ())), (~alike, None)):
      places = np.flatnonzero(these)
      if not len(places):
        continue
      named = [ids[k] for k in places]
      part = pictures.Pictures([given[k] for k in places], named, at)
      batch = min(batch_images, 1 << (len(places) - 1).bit_length())
      _, index, outputs, skipped = evaluation.outputs_of(
        step,
        self.trained.params,
        self.trained.rest,
        part,
        self._mesh,
        batch_images=-(-batch // self._mesh.size) * self._mesh.size,
        image_size=self.image_size,
        interpolation=self.trained.reading['interpolation'],
        on_bad_image='skip',
      )
      if name not in outputs:
        raise UserError(
          f'{self.trained.where}: its objective, {self.trained.stage.objective}, gives no {name}; expected one that does'
        )
      if rows is None:
        rows = np.full((len(given), *outputs[name].shape[1:]), np.nan, np.float32)
      rows[places[index]] = outputs[name]
      errors |= {int(k): skipped[ids[k]] for k in places if ids[k] in skipped}
    return rows, errors


def load(path: str | os.PathLike[str], *, ema: bool = False, field: str = 'path') -> Model:
  """Loads a trained model.

  Args:
    path: a run's folder, a stage in it, a checkpoint, an exported folder or a weight file.
    ema: whether to take the moving average of the weights.
    field: what holds the path, for errors.

  Raises:
    UserError: when there is none, or it is damaged.
  """
  mesh = sharding.make_mesh()
  found = trained.load(os.fspath(path), mesh, field, ema=ema)
  compile_cache.keep(found.config.log.compile_cache, str(found.folder), log.say)
  return Model(found, mesh)


def _ids(given: Sequence[pictures.Picture]) -> list[str]:
  return [os.fspath(one) if isinstance(one, str | os.PathLike) else str(k) for k, one in enumerate(given)]


def _small(picture: np.ndarray) -> np.ndarray:
  image = Image.fromarray(picture)
  image.thumbnail((SEEN, SEEN))
  return np.asarray(image)


def _failed(name: str, why: str) -> Prediction:
  return Prediction(name, '', math.nan, {}, error=why)


def _whole(answers: list[list[Prediction]]) -> list[list[Prediction]]:
  """Returns answers as they are; raises UserError for a picture that can't be read."""
  for one in itertools.chain.from_iterable(answers):
    if one.error:
      raise UserError(f'{one.error}; expected a picture')
  return answers
