"""Evaluates any run or checkpoint on any source and split.

  mimic evaluate --checkpoint runs/mine --data.source=rafdb --data.root=/data/rafdb --data.split=test

Without --data flags it is measured on what its own config names. Classes of another set are matched by name; what has no
counterpart is left out, and said. The folder it writes holds result.json, predictions.npz and report.html, as a run's
stage does, so `mimic compare` reads it. With --knn 20 the nearest training pictures of the set answer, by the model's features, whatever it
was trained for. With --verification pairs of pictures are told apart, too: classes are persons, of clips those in them, and two pictures are of one when the
cosine of their features is large.
"""

import dataclasses
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mimic_jax import config as config_lib
from mimic_jax import data, defaults, metrics, models, uncertainty, verification
from mimic_jax.data import copies, selection
from mimic_jax.data import source as sources
from mimic_jax.data.source import Source
from mimic_jax.report import page, predictions
from mimic_jax.report.drawing import save_drawing
from mimic_jax.runtime import cli, compile_cache, files, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import evaluation, log, neighbours, results, trained, workdir
from mimic_jax.training.trained import Trained

# fields of the data section that are of training pictures alone
TRAINED = ('fraction', 'label_noise', 'part_seed')
STAGE = 'evaluation'  # what the folder's one stage is called
MOST_TRAINING = 50_000  # pictures among which copies are looked for unasked: some minutes on two cores


@dataclasses.dataclass(frozen=True)
class Options:
  """How to measure.

  Attributes:
    subsets: files that list pictures; each is a split of its own beside the whole.
    without_duplicates: look for copies of training pictures among more than MOST_TRAINING, too, and end where those are not at hand.
    batch_images: per step over all devices.
    identity: 'auto', 'none' or a regular expression (uncertainty.identities).
    samples: of the bootstrap; 0 = no intervals.
    seed: of the bootstrap.
    knn: neighbours that answer in the model's place; 0 = the model.
    knn_temperature: of their votes (neighbours.Bank).
    verification: also whether two pictures are of one class, by the cosine of their features (verification.py).
  """

  subsets: tuple[str, ...] = ()
  without_duplicates: bool = False
  batch_images: int = 256
  identity: str = 'auto'
  samples: int = evaluation.BOOTSTRAP_SAMPLES
  seed: int = 0
  knn: int = 0
  knn_temperature: float = neighbours.TEMPERATURE
  verification: bool = False


def data_section(model: Trained, flags: Sequence[str]) -> ConfigDict:
  """Returns the data section to measure on: the one the model's own config was measured on, changed by flags.

  With another source than that one, how a set is read (name, classes, label rule, alignment, root) is at its default.

  Args:
    model: the trained one.
    flags: '--data.field=value'.

  Raises:
    UserError: on a wrong flag.
  """
  stage = model.stage
  section = ConfigDict(stage.data.to_dict())
  for field in ('source', 'root'):
    section[field] = stage.eval[field] or data.first(stage.data.source, stage.data[field])
  section.split = stage.eval.splits or stage.data.split
  section.size = stage.eval.size
  section.cache = False
  # Of what is trained on; what is measured has all its pictures with the labels they have.
  section.update({k: defaults.data()[k] for k in TRAINED})
  own = section.source
  # What only another of the training's sources reads.
  section.update({k: defaults.data()[k] for k in data.unread(own, section)})
  for flag in flags:
    for field in TRAINED:
      if flag.lstrip('-').startswith(f'data.{field}'):
        raise UserError(
          f'--data.{field} is of training pictures; expected none: a split is measured on all of its own'
        )
  changed = config_lib.overridden(section.copy_and_resolve_references().lock(), flags, 'data')
  if changed.source == own:
    return changed
  usual = defaults.data()
  section.update(
    {k: usual[k] for k in (*data.OF_SOME, 'held_out', 'label_rule', 'align', 'align_size', 'root')}
  )
  return config_lib.overridden(section.lock(), flags, 'data')


def splits(model: Trained, section: Mapping[str, Any], options: Options) -> list[evaluation.Split]:
  """Builds what is measured: each split of the section, and each subset of each.

  Args:
    model: the trained one.
    section: of the data.
    options: how to measure.

  Raises:
    UserError: on what a source finds wrong, a list of which no split has a picture, no class in common, and an
      expression that finds no identity.
  """
  stems = [os.path.splitext(os.path.basename(path))[0] for path in options.subsets]
  if len(set(stems)) < len(stems):
    raise UserError(f'--subset: {", ".join(options.subsets)} have one name; expected file names that differ')
  names = evaluation.split_names(section['split'], 'data.split')
  if not names:
    raise UserError("data.split is ''; expected one or more splits, comma-separated")
  wholes = {name: data.build(section['source'], section['root'], name, section) for name in names}
  said = f"--data.source is '{section['source']}'"
  for whole in wholes.values():
    evaluation.check_targets(whole, model.objective.targets, model.stage.objective, said)
  parts = {stem: selection.listed(wholes, path) for stem, path in zip(stems, options.subsets)}
  found = []
  for name, whole in wholes.items():
    found.append(_numbered(model, whole, name, section))
    found += [
      _numbered(model, part[name], f'{name}/{stem}', section) for stem, part in parts.items() if name in part
    ]
  for whole in wholes.values():  # a wrong expression is better known before the pictures are looked at
    uncertainty.identities([whole.id(i) for i in range(len(whole))], options.identity)
  _find_copies(model, found, asked=options.without_duplicates)
  return found


def _find_copies(model: Trained, found: Sequence[evaluation.Split], asked: bool) -> None:
  """Finds copies of training pictures; unless asked for, not where those are many or not at hand."""
  d = model.stage.data
  try:
    train = _bank(model) or data.whole(d.source, d.root, d.split, d)
  except UserError as e:
    if asked:
      raise
    log.say(f'note: copies of training pictures are not looked for: {e}')
    return
  if asked or len(train) <= MOST_TRAINING:
    evaluation.find_copies(found, train)
  else:
    log.say(
      f'note: copies of the {len(train):,} training pictures are looked for with --without_duplicates only'
    )


def _bank(model: Trained) -> Source | None:
  """Returns the pictures whose neighbours answer, None where the model does."""
  return model.objective.source if isinstance(model.objective, neighbours.Neighbours) else None


def _numbered(model: Trained, source: Any, name: str, section: Mapping[str, Any]) -> evaluation.Split:
  """Returns a split with the model's class numbers, where it has classes; raises UserError where nothing is left."""
  if not model.class_names:
    return evaluation.Split(name, source)
  kept = selection.for_classes(source, model.class_names, f"data.split '{name}' of {section['source']}")
  if not len(kept):
    left_out = ', '.join(k for k, n in kept.record().get('classes_left_out', {}).items() if n)
    raise UserError(
      f"data.split '{name}' of {section['source']}: all {len(source)} pictures are of classes that the model lacks "
      f'({left_out}); expected some of {", ".join(model.class_names)}'
    )
  return evaluation.Split(name, kept)


def measure(
  model: Trained, found: Sequence[evaluation.Split], section: Mapping[str, Any], options: Options, mesh: Mesh
) -> dict[str, evaluation.Measured]:
  """Runs every split through the model and adds intervals to its scores."""
  step = evaluation.make_step(model.objective.evaluate, model.template, mesh, model.frozen)
  longest = max(len(split.source) for split in found)
  # no more padding than needed
  batch_images = min(options.batch_images, -(-longest // mesh.size) * mesh.size)
  measured = {}
  for split in found:
    measured[split.name] = evaluation.measure(
      model.objective,
      step,
      model.params,
      model.rest,
      split,
      mesh,
      class_names=model.class_names,
      batch_images=batch_images,
      image_size=model.reading['image_size'],
      interpolation=model.reading['interpolation'],
      on_bad_image=section['on_bad_image'],
    )
    evaluation.add_intervals(
      measured[split.name],
      split,
      model.class_names,
      identity=options.identity,
      samples=options.samples,
      seed=options.seed,
    )
    if options.verification:
      measured[split.name].metrics['verification'] = _verified(split, measured[split.name], options)
  return measured


def _verified(split: evaluation.Split, m: evaluation.Measured, options: Options) -> dict[str, Any]:
  if 'features' not in m.outputs:
    raise UserError('--verification: the model answers with no features; expected one that does')
  known = sources.targets_of(split.source).get('person')
  if known is None and not split.source.class_names:
    raise UserError(
      f"--verification: '{split.name}' has no classes; expected a set whose classes are persons, or clips of some"
    )
  if known is not None and 'parts' in split.source.record():
    raise UserError(
      f"--verification: '{split.name}' is of several sources, each of which numbers its persons; expected one source"
    )
  persons = metrics.dominant(m.outputs['label']) if known is None else known[m.index]
  there = np.isfinite(persons)  # a table may leave a cell empty
  try:
    return verification.measure(m.outputs['features'][there], persons[there], options.samples, options.seed)
  except UserError as e:
    raise UserError(f"--verification: '{split.name}': {e}") from e


def notes(model: Trained, found: Sequence[evaluation.Split], of_sources: bool = True) -> list[str]:
  """Returns what a reader of the figures must know: classes left out or absent, another alignment, sources' warnings.

  Args:
    model: the trained one.
    found: what is measured on.
    of_sources: whether to repeat the warnings that the sources' records hold.
  """
  lines = []
  for split in found:
    record = split.source.record()
    lines += record.get('warnings', ()) if of_sources else ()
    left_out = {k: n for k, n in record.get('classes_left_out', {}).items() if n}
    if left_out:
      which = ', '.join(f'{name} ({n:,} pictures)' for name, n in left_out.items())
      lines.append(f'{split.name}: left out, since the model has no such class: {which}')
    if record.get('classes_absent'):
      absent = ', '.join(record['classes_absent'])
      lines.append(
        f'{split.name}: the set has no {absent}; answers of the model with them count as wrong '
        '(accuracy_among_shared_classes does not let it give them)'
      )
    subset = record.get('subset', {})
    if subset.get('repeated_lines'):
      lines.append(
        f'{split.name}: {subset["repeated_lines"]:,} lines of {subset["list"]} repeat others; each picture counts once'
      )
    if subset.get('not_there'):
      lines.append(
        f'{split.name}: {subset["not_there"]:,} names of {subset["list"]} are not in this split as it was read: '
        f'{subset["first_not_there"]}'
      )
    lines += evaluation.warnings_of_copies(split)
    here, there = _cut(record), _cut(model.reading)
    if here != there:
      lines.append(f"{split.name}: pictures are aligned '{here}', those of the training were '{there}'")
  return list(dict.fromkeys(lines))


def _cut(record: Mapping[str, Any]) -> str:
  """Returns how faces were cut out in a few words: the alignment, its size and detector, or what the release says."""
  align = record.get('align', {'align': 'none'})
  more = [str(align[k]) for k in ('size', 'detector', 'of_release') if align.get(k)]
  return align['align'] + (f' ({", ".join(more)})' if more else '')


def write(
  folder: epath.Path,
  model: Trained,
  found: Sequence[evaluation.Split],
  measured: Mapping[str, evaluation.Measured],
  seconds: float,
) -> None:
  """Writes an evaluation's results: record.json, evaluation/ with figures and pictures, report.html."""
  where, bank = model.where, _bank(model)
  record = {
    'environment': workdir.environment(),
    'checkpoint': {'path': where, 'config': model.config.to_dict(), 'reading': model.reading},
    'data': {STAGE: ({'train': bank.record()} if bank else {}) | {s.name: s.source.record() for s in found}},
    'notes': {'warnings': notes(model, found, of_sources=False)},
    'skipped': {STAGE: {k: m.skipped for k, m in measured.items() if m.skipped}},
  }
  files.write_json(folder / 'record.json', record)
  inside = folder / STAGE
  inside.mkdir(exist_ok=True)
  results.save_outputs(inside, found, measured, model.class_names)
  _draw(inside, model, found, measured)
  count = sum(m.metrics['count'] for m in measured.values())
  result = {
    'stage': STAGE,
    'objective': f'{model.objective.k} nearest neighbours' if bank else model.stage.objective,
    'init': where,
    'steps': model.step,
    'total_steps': model.step,
    'seconds': seconds,
    'images_per_second': count / max(seconds, 1e-9),
    'metrics': {name: m.metrics for name, m in measured.items()},
  }
  files.write_json(inside / 'result.json', result)
  page.write(folder)


def _draw(
  folder: epath.Path,
  model: Trained,
  found: Sequence[evaluation.Split],
  measured: Mapping[str, evaluation.Measured],
) -> None:
  first = found[0]
  sample = evaluation.sample_batch(
    first.source, model.reading['image_size'], model.reading['interpolation'], list(model.objective.targets)
  )
  merged = model.frozen.attached(models.merge(model.template, model.params, model.rest), model.frozen.arrays)
  for old in (folder / 'pictures').glob('*') if (folder / 'pictures').exists() else ():
    old.unlink()  # of an earlier evaluation into this folder
  for name, drawing in model.objective.look(merged, sample).items():
    save_drawing(folder / 'pictures', name, drawing)
  results.save_mistakes(folder, first, measured[first.name], model.class_names)
  results.save_copies(folder, found)


def table(measured: Mapping[str, evaluation.Measured]) -> str:
  """Returns the scores of every split as lines of text."""
  lines = []
  for name, m in measured.items():
    held = m.metrics
    if targets := metrics.scored(held):
      lines.append(f'{name}: {held["count"]:,} pictures, loss {held["loss"]:.4f}')
      for target, kind in targets.items():
        for score in metrics.SCORES_OF[kind]:
          key = f'{score}_{target}'
          ends = held.get('intervals', {}).get(key)
          between = f'   [{ends["low"]:.3f}, {ends["high"]:.3f}]' if ends else ''
          lines.append(f'  {key.replace("_", " "):<30}{held[key]:6.3f}{between}')
    elif 'accuracy' not in held:
      said = ', '.join(f'{k} {v:.4f}' for k, v in held.items() if isinstance(v, float))
      lines.append(f'{name}: {said} on {held["count"]:,} pictures')
    else:
      lines.append(f'{name}: {held["count"]:,} pictures')
    for score in ('accuracy', 'mean_class_accuracy', 'macro_f1') if 'accuracy' in held else ():
      interval = held.get('intervals', {}).get(score)
      between = f'   [{100 * interval["low"]:.2f}, {100 * interval["high"]:.2f}]' if interval else ''
      lines.append(f'  {score.replace("_", " "):<30}{100 * held[score]:6.2f} %{between}')
    for score in ('accuracy_among_shared_classes', 'largest_class'):
      if score in held:
        lines.append(f'  {score.replace("_", " "):<30}{100 * held[score]:6.2f} %')
    for name in evaluation.WITHOUT:
      score, count = f'accuracy_without_{name}', held.get(f'count_without_{name}')
      if score in held and count < held['count']:
        lines.append(f'  {score.replace("_", " "):<30}{100 * held[score]:6.2f} %   of {count:,}')
    if 'why_no_intervals' in held:
      lines.append(f'  no intervals: {held["why_no_intervals"]}')
    if 'intervals' in held:
      how = held['intervals']['method']
      lines.append(
        f'  [{100 * how["level"]:g} % {how["interval"]}, {how["samples"]} resamples of {how["units"]:,} {how["over"]}]'
      )
    if 'copies' in held:
      lines.append(f'  {copies.told(held["copies"])}')
    if 'verification' in held:
      lines.append(f'  {verification.told(held["verification"])}')
  return '\n'.join(lines)


def _parser() -> cli.Parser:
  parser = cli.Parser('evaluate', __doc__)
  add = parser.add_argument
  add('--checkpoint', required=True, help="a run's folder, a stage's folder or a checkpoint")
  add('--out', default='', help='folder to write; default <run>/evaluations/<source>-<split>')
  add('--subset', action='append', default=[], help='file that lists pictures of a part; may be given again')
  add(
    '--without_duplicates',
    action='store_true',
    help='look for copies of training pictures however many those are',
  )
  add('--ema', action='store_true', help='the moving average of the weights instead of the last ones')
  add(
    '--csv',
    action='store_true',
    help='also write evaluation/predictions.csv: id, label, answer, probabilities',
  )
  add(
    '--knn',
    type=int,
    default=0,
    metavar='K',
    help="the set's K nearest training pictures answer, by the model's features; 20 is usual",
  )
  add(
    '--knn_temperature',
    type=float,
    help=f'of their votes exp(cosine / temperature), {neighbours.TEMPERATURE} without it; inf = one vote each',
  )
  add(
    '--verification',
    action='store_true',
    help='also tell pairs of pictures of one class, of clips of one person, from pairs of two, by the cosine of features',
  )
  add('--batch_images', type=int, default=256)
  add(
    '--identity',
    default='auto',
    help='who is on a picture, for intervals: auto | none | a regular expression',
  )
  add('--samples', type=int, default=evaluation.BOOTSTRAP_SAMPLES, help='of the bootstrap; 0 = no intervals')
  add('--seed', type=int, default=0, help='of the bootstrap')
  parser.epilog = 'and --data.FIELD=VALUE for each field of mimic_jax.defaults.data()'
  return parser


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  given, rest = _parser().parse_known_args(list(argv))
  for arg in rest:
    if not arg.startswith(('--data.', '-data.')):
      raise UserError(f"'{arg}' is not understood; expected --data.FIELD=VALUE or a flag that --help names")
  if given.seed < 0:
    raise UserError(f'--seed is {given.seed}; expected 0 or more')
  if given.batch_images < 1:
    raise UserError(f'--batch_images is {given.batch_images}; expected at least 1')
  if given.knn < 0:
    raise UserError(f'--knn is {given.knn}; expected a number of neighbours, such as 20')
  if given.knn_temperature is not None and not given.knn:
    raise UserError('--knn_temperature has no effect without --knn; expected both or neither')
  if given.knn_temperature is not None and not given.knn_temperature > 0:
    raise UserError(f'--knn_temperature is {given.knn_temperature}; expected a number above 0, or inf')
  if given.verification and given.knn:
    raise UserError(
      '--verification compares features, which --knn answers with none of; expected one of them'
    )
  if given.samples and given.samples < uncertainty.LEAST_SAMPLES:
    raise UserError(f'--samples is {given.samples}; expected 0 or at least {uncertainty.LEAST_SAMPLES}')
  mesh = sharding.make_mesh()
  sharding.check_divides('--batch_images', given.batch_images, mesh)
  model = trained.load(given.checkpoint, mesh, ema=given.ema)
  compile_cache.keep(model.config.log.compile_cache, str(model.folder), log.say)
  section = data_section(model, rest)
  given.subsets, given.knn_temperature = tuple(given.subset), given.knn_temperature or neighbours.TEMPERATURE
  options = Options(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Options)})
  if options.knn:
    model = neighbours.Neighbours(model, section, options.knn, options.knn_temperature).classifier
  if given.csv and not model.class_names:
    raise UserError(f'--csv: {model.where} answers with no classes; expected a classifier')
  found = splits(model, section, options)
  folder = _begin(given.out, model, section, options, found)
  for note in notes(model, found):
    log.say(f'note: {note}')
  began = time.monotonic()
  with sharding.enough_memory('the evaluation', f'--batch_images (is {options.batch_images})'):
    if options.knn:
      model = model.objective.filled(mesh, options.batch_images)
    measured = measure(model, found, section, options, mesh)
  write(folder, model, found, measured, time.monotonic() - began)
  if given.csv:
    answers = predictions.load(folder / STAGE / predictions.FILE)
    files.write_whole(folder / STAGE / 'predictions.csv', predictions.comma_separated(answers))
  print(table(measured))
  print(f'report: {folder / "report.html"}')


def _begin(
  out: str, model: Trained, section: ConfigDict, options: Options, found: Sequence[evaluation.Split]
) -> epath.Path:
  """Makes the folder with its config.json; an evaluation that is there already is repeated, another one never replaced.

  Raises:
    UserError: when it can't be written, or holds something else.
  """
  place = [section.source, section.name or os.path.basename(section.root.rstrip('/')), section.split]
  subsets = [os.path.splitext(os.path.basename(path))[0] for path in options.subsets]
  asked = {k: v for k, v in dataclasses.asdict(options).items() if options.knn or not k.startswith('knn')}
  if not asked['verification']:  # evaluations from before there was one have no such field
    del asked['verification']
  how = [options.knn and f'knn{options.knn}', options.verification and 'verification']
  words = [model.stage_name, str(model.step), model.ema and 'ema', *place, *subsets, *how]
  name = re.sub(r'[^\w.+-]', '+', '-'.join(filter(None, words)))
  folder = epath.Path(out) if out else model.folder.parent.parent / 'evaluations' / name
  config = {
    'name': f'{model.config.name} on {section.source} {section.split}',
    'stages': STAGE,
    STAGE: {
      'objective': model.stage.objective,
      'checkpoint': model.where,
      'data': section.to_dict(),
      **asked,
      'split_hashes': {split.name: split.source.record()['split_hash'] for split in found},
    },
  }
  if folder.exists() and not folder.is_dir():
    raise UserError(f"--out is '{folder}', a file; expected a folder")
  kept = folder / 'config.json'
  if kept.exists():
    there = files.read_json(kept)
    if there.get('stages') != STAGE:
      raise UserError(f"--out is '{folder}', which holds a run; expected a new folder or an evaluation's")
    a, b = (dict(config_lib.fields(files.jsonable(c[STAGE]))) for c in (there, config))
    differs = [f'{k}: {a.get(k)} → {b.get(k)}' for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
    if differs:
      raise UserError(f"'{folder}' holds another evaluation ({differs[0]}); expected another --out")
  elif folder.exists() and any(folder.iterdir()):
    raise UserError(
      f"--out is '{folder}', which holds something else; expected a new folder or an evaluation's"
    )
  try:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(kept, config)
  except OSError as e:
    raise UserError(f"--out '{folder}' can not be written ({e.strerror or e})") from e
  return folder
