"""Exact evaluation: every example once, whatever the batch size and however many devices."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mimic_jax import data, defaults, metrics, models, uncertainty
from mimic_jax.data import copies as copies_lib
from mimic_jax.data import pipeline, selection
from mimic_jax.data import source as source_lib
from mimic_jax.objectives import Objective
from mimic_jax.objectives.base import Target
from mimic_jax.runtime import distributed, feed, preemption, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import step as step_lib

BOOTSTRAP_SAMPLES = 2000
# accuracy_without_<name> and count_without_<name> leave out copies of training pictures of these kinds.
WITHOUT = {**{name: (k,) for k, name in enumerate(copies_lib.KINDS, 1)}, 'copies': (1, 2, 3)}


@dataclasses.dataclass(eq=False)
class Split:
  """A split to measure on.

  Attributes:
    name: 'valid', 'test', …
    source: its pictures.
    copies: which of them are copies of training pictures; None where that was not looked for.
  """

  name: str
  source: Any
  copies: copies_lib.Copies | None = None


@dataclasses.dataclass
class Measured:
  """What a split's evaluation found.

  Attributes:
    metrics: JSON-able figures.
    index: int [n], the position of each row in its source, rising; pictures that could not be read are left out.
    outputs: per example: 'logits' [n, K], 'features' [n, D], 'label' [n] or [n, K], …
    skipped: pictures that could not be read, by id, and why.
  """

  metrics: dict[str, Any]
  index: np.ndarray
  outputs: dict[str, np.ndarray]
  skipped: dict[str, str]


def split_names(text: str, field: str) -> list[str]:
  """Returns the comma-separated names in `text`; raises UserError where one stands twice."""
  names = [s.strip() for s in text.split(',') if s.strip()]
  for name in names:
    if names.count(name) > 1:
      raise UserError(f"{field} is '{text}', which names '{name}' twice; expected each split once")
  return names


def splits_of(
  stage: Mapping[str, Any], options: Mapping[str, Any], class_names: Sequence[str], field: str
) -> list[Split]:
  """Builds the splits that a stage's config names.

  Args:
    stage: a stage's section of the config.
    options: its data section, as the sources take it.
    class_names: of the model, by which the splits' classes are matched; () where it has none.
    field: the stage's, for errors.

  Raises:
    UserError: on 'train', on what a source finds wrong, and on a split that shares no class with the model.
  """
  names = split_names(stage['eval']['splits'], f'{field}.eval.splits')
  if 'train' in names:
    raise UserError(
      f"{field}.eval.splits is '{stage['eval']['splits']}', and the figures of the training itself are called 'train'; expected other splits: "
      'mimic evaluate --data.split=train measures it'
    )
  kind, root = (
    stage['eval'][f] or data.first(stage['data']['source'], stage['data'][f]) for f in ('source', 'root')
  )
  options = {**options, 'size': stage['eval']['size']}
  # What only another of the training's sources reads.
  options |= {k: defaults.data()[k] for k in data.unread(kind, options)}
  splits = []
  for name in names:
    source = data.build(kind, root, name, options)
    if class_names:
      source = selection.for_classes(source, class_names, f"{field}.eval.splits: '{name}' of {kind}")
    splits.append(Split(name, source))
  return splits


def check_targets(
  source: source_lib.Source, targets: Mapping[str, Target], objective: str, said: str
) -> None:
  """Raises UserError when a source lacks a target that an objective needs; `said` is which source, as "FIELD is 'VALUE'"."""
  offered = source_lib.targets_of(source) if targets else {}
  for name, target in targets.items():
    if name not in offered:
      there = ', '.join(offered) or 'nothing beside the label'
      warnings = source.record().get('warnings', ())
      there += next((f' ({w})' for w in warnings if re.search(rf'\b{re.escape(name)}\b', w)), '')
      raise UserError(f"{said}, which offers {there}; objective '{objective}' needs '{name}'")
    if (shape := np.shape(offered[name])[1:]) != target.shape:
      raise UserError(
        f"{said}, whose '{name}' has shape {shape}; objective '{objective}' needs {target.shape}"
      )


def find_copies(splits: Sequence[Split], train: source_lib.Source) -> None:
  """Finds in each split the pictures that are copies of one of the training source."""
  known = copies_lib.Known(train)
  for split in splits:
    split.copies = known.find(split.source)


def warnings_of_copies(split: Split) -> list[str]:
  """Returns the sentence that whoever reads a split's scores must know, where some of its pictures are copies."""
  count = 0 if split.copies is None else int((split.copies.kind > 0).sum())
  if not count:
    return []
  return [
    f'{split.name}: {count:,} of {len(split.source):,} pictures are copies of training pictures; '
    'accuracy_without_copies leaves them out'
  ]


def sample_batch(
  source: Any, image_size: int, interpolation: str, targets: Sequence[str] = (), rows: int = 8
) -> dict[str, np.ndarray]:
  """Returns pictures evenly spread over a source as an evaluation batch, for drawing: a folder's first are of one class."""
  picks = np.linspace(0, len(source) - 1, min(rows, len(source))).astype(int)
  batches = pipeline.eval_batches(
    selection.Selected(source, picks),
    batch_images=rows,
    image_size=image_size,
    interpolation=interpolation,
    on_bad_image='skip',
    targets=targets,
  )
  return next(iter(batches))


def make_step(
  evaluate: Callable[[Any, dict[str, jax.Array]], dict[str, Any]],
  template: Any,
  mesh: Mesh,
  frozen: step_lib.FrozenNetworks,
) -> Callable[..., dict[str, Any]]:
  """Returns the jitted step (params, rest, batch) → {'sums', 'outputs'} of an objective's `evaluate`, both on every device whole."""

  def step(params: Any, rest: Any, batch: dict[str, jax.Array], given: Any) -> dict[str, Any]:
    with sharding.in_mesh(mesh):
      found = evaluate(frozen.attached(models.merge(template, params, rest), given), batch)
    outputs = {**found['outputs'], **{k: batch[k] for k in ('index', 'mask', 'label')}}
    return {'sums': found['sums'], 'outputs': outputs}

  compiled = jax.jit(step, out_shardings=sharding.replicated(mesh))
  return lambda params, rest, batch: compiled(params, rest, batch, frozen.arrays)


def outputs_of(
  step: Callable[..., dict[str, Any]],
  params: Any,
  rest: Any,
  source: source_lib.Source,
  mesh: Mesh,
  *,
  batch_images: int,
  image_size: int,
  interpolation: str,
  on_bad_image: str,
  targets: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray], dict[str, str]]:
  """Runs every picture of a source through the model; arguments and errors are those of `measure`, targets what the step reads.

  Returns:
    Of every figure (total, count); int [n], the position of each row in the source, rising; the rows by name; and the
    pictures that could not be read, by id, and why. The same in every process.
  """
  batches = pipeline.eval_batches(
    source,
    batch_images=batch_images,
    image_size=image_size,
    interpolation=interpolation,
    share=pipeline.Share(*sharding.share(mesh)),
    on_bad_image=on_bad_image,
    targets=targets,
  )
  sums: dict[str, np.ndarray] = {}
  rows: list[dict[str, np.ndarray]] = []
  for batch in feed.on_devices(batches, -(-len(source) // batch_images), mesh):
    preemption.look()
    found = jax.device_get(step(params, rest, batch))
    for name, part in found['sums'].items():
      sums[name] = sums.get(name, 0.0) + np.asarray(part, np.float64)
    mask = found['outputs'].pop('mask')
    rows.append({k: v[mask] for k, v in found['outputs'].items()})
  outputs = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
  order = np.argsort(outputs['index'], kind='stable')
  outputs = {k: v[order] for k, v in outputs.items()}
  return sums, outputs.pop('index'), outputs, distributed.merged([batches.skipped()])


def measure(
  objective: Objective,
  step: Callable[..., dict[str, Any]],
  params: Any,
  rest: Any,
  split: Split,
  mesh: Mesh,
  *,
  class_names: tuple[str, ...],
  batch_images: int,
  image_size: int,
  interpolation: str,
  on_bad_image: str,
) -> Measured:
  """Runs a split through the model.

  Args:
    objective: of the model.
    step: from `make_step`.
    params: trained parameters.
    rest: the model's other state.
    split: what to measure on.
    mesh: of the devices.
    class_names: of the model's outputs.
    batch_images: images per step over all devices.
    image_size: side in pixels.
    interpolation: of the resize.
    on_bad_image: 'error' or 'skip'.

  Returns:
    Figures and per-example outputs, in every process of all.

  Raises:
    UserError: for a picture that can't be read.
    Preempted: when told to stop.
  """
  sums, index, outputs, skipped = outputs_of(
    step,
    params,
    rest,
    split.source,
    mesh,
    batch_images=batch_images,
    image_size=image_size,
    interpolation=interpolation,
    on_bad_image=on_bad_image,
    targets=list(objective.targets),
  )
  figures: dict[str, Any] = {
    name: float(total / count) if count else math.nan for name, (total, count) in sums.items()
  }
  figures |= {'count': len(index), **objective.figures(outputs)}
  if split.copies is not None:
    figures['copies'] = split.copies.figures()
  if 'logits' in outputs:
    figures |= _classification(outputs['label'], outputs['logits'], class_names, split, index)
  figures |= metrics.of_targets(outputs)
  return Measured(figures, index, outputs, skipped)


def _classification(
  labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str], split: Split, index: np.ndarray
) -> dict[str, Any]:
  """Returns the scores on all pictures; without copies of training pictures and among shared classes, where that is another thing."""
  figures = metrics.classification(labels, logits, class_names)
  figures['calibration'] = metrics.calibration(labels, logits)
  for name, kinds in WITHOUT.items() if split.copies is not None else ():
    keep = ~np.isin(split.copies.kind[index], kinds)
    figures[f'count_without_{name}'] = int(keep.sum())
    if keep.any():
      fresh = metrics.classification(labels[keep], logits[keep], class_names)
      figures[f'accuracy_without_{name}'] = fresh['accuracy']
  absent = getattr(split.source, 'classes_absent', ())
  if absent:
    shared = np.where(np.isin(class_names, absent), -np.inf, logits)
    figures['accuracy_among_shared_classes'] = metrics.classification(labels, shared, class_names)['accuracy']
  return figures


def add_intervals(
  measured: Measured,
  split: Split,
  class_names: Sequence[str],
  identity: str = 'auto',
  samples: int = BOOTSTRAP_SAMPLES,
  seed: int = 0,
) -> None:
  """Adds to a split's figures the bootstrap intervals of its scores, clustered by identity where ids tell it.

  Args:
    measured: changed; left as it is where there are neither classes nor targets.
    split: what was measured on.
    class_names: of the model.
    identity: 'auto', 'none' or a regular expression (uncertainty.identities).
    samples: of the bootstrap; 0 = none.
    seed: of the bootstrap.
  """
  classified = 'logits' in measured.outputs
  if not samples or not (classified or metrics.answered(measured.outputs)):
    return
  ids = [split.source.id(int(i)) for i in measured.index]
  try:
    if len(ids) < 2:
      raise UserError('one picture')
    clusters, m = uncertainty.identities(ids, identity), measured.outputs
    measured.metrics['intervals'] = (
      uncertainty.intervals(m['label'], m['logits'], class_names, clusters, samples, seed)
      if classified
      else uncertainty.of_targets(m, clusters, samples, seed)
    )
  except UserError as e:  # nothing to draw from: of a listed part, or a target of one person's pictures alone
    measured.metrics['why_no_intervals'] = str(e)
