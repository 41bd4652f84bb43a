"""Classification by the k nearest neighbours on a model's features: what it knows of a set's classes with nothing trained.

The weighted votes of Wu et al. (2018, arXiv 1805.01978 §3.4), as DINO (arXiv 2104.14294) has them with k = 20: of the pictures of a bank the
k with the largest cosine similarity s vote for their class with exp(s / τ), τ = .07; here divided by the nearest's, which changes no share and
can't overflow.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mimic_jax import data, models
from mimic_jax.data.sets import folder
from mimic_jax.data.source import Source
from mimic_jax.models import heads
from mimic_jax.runtime import sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import evaluation
from mimic_jax.training.trained import Trained

TEMPERATURE = 0.07
BLOCK = 16_384  # pictures of a bank that a batch is held against at a time: similarities take no more room in a larger bank


class Bank(nnx.Module):
  """Features of length 1 in blocks, float32 [m, block, D], and what classes they are of, float32 [m · block, K]; `count` are pictures.

  Args:
    features: float [n, D].
    labels: int [n], or float [n, K].
    classes: K.
    block: of so many rows, the last one filled up.
  """

  def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int, block: int = BLOCK):
    self.count = len(features)
    block = min(block, self.count)
    shares = labels if labels.ndim == 2 else np.eye(classes)[labels]
    features, shares = (
      np.pad(x.astype(np.float32), ((0, -self.count % block), (0, 0))) for x in (features, shares)
    )
    long = heads.l2_normalise(jnp.asarray(features))
    self.features = nnx.Variable(long.reshape(-1, block, features.shape[1]))
    self.labels = nnx.Variable(jnp.asarray(shares))

  def votes(self, features: jax.Array, k: int, temperature: float) -> jax.Array:
    """Returns what each class gets of the k nearest neighbours, float32 [N, K]; the nearest has one vote.

    Args:
      features: float [N, D].
      k: neighbours, at most `count`; of two as near it is the first.
      temperature: τ; with infinity every neighbour has one vote.
    """
    features = heads.l2_normalise(features)
    blocks = self.features[...]

    def nearest(best: tuple[jax.Array, jax.Array], block: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
      rows, first = block
      places = first + jnp.arange(len(rows))
      cosine = jnp.matmul(features, rows.T, precision=jax.lax.Precision.HIGHEST)
      cosine = jnp.where((places < self.count)[None], cosine, -jnp.inf)
      near = jnp.concatenate([best[0], cosine], axis=1)
      ids = jnp.concatenate([best[1], jnp.broadcast_to(places, cosine.shape)], axis=1)
      near, chosen = jax.lax.top_k(near, k)
      return (near, jnp.take_along_axis(ids, chosen, axis=1)), None

    firsts = blocks.shape[1] * jnp.arange(len(blocks))
    none = (jnp.full((len(features), k), -jnp.inf), jnp.zeros((len(features), k), firsts.dtype))
    (cosine, ids), _ = jax.lax.scan(nearest, none, (blocks, firsts))
    return jnp.einsum('nk,nkc->nc', jnp.exp((cosine - cosine[:, :1]) / temperature), self.labels[...][ids])


def _summands(split: str) -> set[str]:
  """Returns the splits that a sum of some is of, without their synonyms."""
  return {folder.canonical(part) for part in split.split('+')}


class Neighbours:
  """What stands for a model's objective where its neighbours answer: all that an evaluation asks of one.

  Args:
    model: whose features are compared.
    section: of the data that is measured on; the bank are the training pictures of the same source.
    k: neighbours.
    temperature: as for `Bank.votes`.

  Raises:
    UserError: where the bank has no labels, fewer than k pictures, or is what is measured on; and on what its source finds wrong.
  """

  labelled = True
  targets: ClassVar = {}

  def __init__(self, model: Trained, section: Mapping[str, Any], k: int, temperature: float):
    self._model, self._section, self.k, self.temperature = model, section, k, temperature
    own = model.stage.data
    split = own.split if data.first(own.source, own.source) == section['source'] else data.defaults().split
    self._what = f"the '{split}' pictures of {section['source']}"
    measured = evaluation.split_names(section['split'], 'data.split')
    if _summands(split) & set().union(*map(_summands, measured)):
      raise UserError(
        f"data.split is '{section['split']}', and --knn looks for neighbours in {self._what}; expected other splits alone"
      )
    self.source: Source = data.build(section['source'], section['root'], split, section)
    if not self.source.class_names:
      raise UserError(f'--knn: {self._what} have no labels; expected a --data.source with classes')
    self._check_enough(len(self.source))

  def _check_enough(self, count: int) -> None:
    if self.k > count:
      raise UserError(f'--knn is {self.k}, and {self._what} are {count:,}; expected at most as many')

  @property
  def classifier(self) -> Trained:
    """The model with these as its objective and the bank's classes; it needs its `filled` bank to answer."""
    reading = {**self._model.reading, 'class_names': tuple(self.source.class_names)}
    return dataclasses.replace(self._model, objective=self, reading=reading)

  def filled(self, mesh: Mesh, batch_images: int) -> Trained:
    """Computes the bank and returns the classifier, whose step gets it as it gets networks that are read from files.

    Args:
      mesh: of the devices; each holds the whole bank.
      batch_images: pictures at a time.

    Raises:
      UserError: of a model without features, and for a picture that can't be read.
    """
    model = self._model
    step = evaluation.make_step(
      lambda network, batch: {'sums': {}, 'outputs': {'features': self._features(network, batch)}},
      model.template,
      mesh,
      model.frozen,
    )
    _, _, found, _ = evaluation.outputs_of(
      step,
      model.params,
      model.rest,
      self.source,
      mesh,
      batch_images=batch_images,
      image_size=model.reading['image_size'],
      interpolation=model.reading['interpolation'],
      on_bad_image=self._section['on_bad_image'],
    )
    self._check_enough(len(found['label']))
    bank = Bank(found['features'], found['label'], len(self.source.class_names))
    template, *arrays = models.split(bank, lambda path: True)
    arrays = jax.device_put(tuple(arrays), sharding.replicated(mesh))
    frozen = model.frozen._replace(
      templates={**model.frozen.templates, 'bank': template}, arrays={**model.frozen.arrays, 'bank': arrays}
    )
    return dataclasses.replace(self.classifier, frozen=frozen)

  def _features(self, network: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    said = self._model.objective.answers(network, self._model.seen(batch['image']))
    if 'features' not in said:
      raise UserError(
        f'--knn: {self._model.where}: its objective, {self._model.stage.objective}, gives no features; expected one that does'
      )
    return said['features']

  def evaluate(self, network: Any, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Returns features and, as logits, the logarithms of the votes: softmax makes of them each class's share."""
    features = self._features(network, batch)
    logits = jnp.log(network.bank.votes(features, self.k, self.temperature))
    return {'sums': {}, 'outputs': {'features': features, 'logits': logits}}

  def figures(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns nothing beside a classifier's scores."""
    del outputs
    return {}

  def look(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nothing: the model has a part in the answers alone."""
    del model, batch
    return {}
