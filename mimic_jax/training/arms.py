"""Several runs as a comparison has them: an arm is one method, with a run for each seed that it was trained with."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mimic_jax import config as config_lib
from mimic_jax import uncertainty
from mimic_jax.report import predictions
from mimic_jax.report import run as runs
from mimic_jax.report.predictions import Predictions
from mimic_jax.runtime import files
from mimic_jax.runtime.errors import UserError

PAPER_NAMES = {'rafdb': 'RAF-DB', 'ferplus': 'FERPlus', 'affectnet': 'AffectNet'}
OF_MANY = ('folder', 'csv', 'tfds')  # sources that read many sets, which their folders or names tell apart
_CHECKPOINT = re.compile(r'(?P<run>.*)/(?P<stage>[^/]+)/checkpoints/\d+(?P<ema> \(ema\))?')


class Answers(NamedTuple):
  """What one trained stage answered on one set.

  Attributes:
    folder: what holds the predictions: a stage, an evaluation, or the file.
    run: name of the trained run's folder; of one of several seeds, of the folder of them all.
    stage: the trained one, and in brackets what else made the answers: 'finetune (ema)', 'pretrain (20 neighbours)'.
    config: of the trained run, as JSON has it; {} where only predictions are known.
    data: the set, in words.
    predictions: on all its splits; None of a stage that does not classify.
  """

  folder: epath.Path
  run: str
  stage: str
  config: Mapping[str, Any]
  data: str
  predictions: Predictions | None

  @property
  def seed(self) -> int:
    """Of the training."""
    return int(self.config.get('seed', 0))

  @property
  def section(self) -> Mapping[str, Any]:
    """The stage's part of the config."""
    return self.config.get(self.stage.partition(' (')[0], {})


class Arm(NamedTuple):
  """One method: what it answered, trained with one seed or several, on one set or several."""

  name: str
  answers: list[Answers]

  def seeds(self) -> list[int]:
    """Returns its seeds, in order."""
    return sorted({a.seed for a in self.answers})

  def on(self, data: str, split: str) -> dict[int, Predictions]:
    """Returns its predictions on a split of a set, by seed."""
    held = [a for a in self.answers if a.data == data and a.predictions and split in a.predictions.splits()]
    return {
      a.seed: predictions.of_split([a.predictions], split)[0][0] for a in sorted(held, key=lambda a: a.seed)
    }


def read(paths: Sequence[str], every_stage: bool = False) -> list[Arm]:
  """Groups runs into arms: of one stage, and of configs that differ in their seed, and in how runs are carried out, alone.

  Args:
    paths: runs, folders of --seeds, a stage of either, evaluations, predictions.npz.
    every_stage: of a run, also those that do not classify.

  Raises:
    UserError: when one is nothing of these, or has no predictions of a classifier.
  """
  found: list[list[Answers]] = []
  for answers in {
    str(a.folder): a for path in paths for f in folders(path) for a in _of_folder(f, every_stage)
  }.values():
    for held in found:
      if _alike(held[0], answers) and not any(_same_place(a, answers) for a in held):
        held.append(answers)
        break
    else:
      found.append([answers])
  names = [_name(held[0]) for held in found]
  return [
    Arm(str(held[0].folder) if names.count(name) > 1 else name, held) for name, held in zip(names, found)
  ]


def _alike(a: Answers, b: Answers) -> bool:
  if not a.config or not b.config or a.stage != b.stage:
    return False
  one, other = (dict(config_lib.fields(x.config)) for x in (a, b))
  shared = (k for k in one.keys() & other.keys() if k != 'seed' and not config_lib.RESUMABLE.search(k))
  return all(one[k] == other[k] for k in shared)


def _same_place(a: Answers, b: Answers) -> bool:
  if a.seed != b.seed or a.data != b.data:
    return False
  there = [set(x.predictions.splits() if x.predictions else ()) for x in (a, b)]
  return bool(there[0] & there[1]) or not any(there)


def _name(a: Answers) -> str:
  several = len(runs.stage_names(dict(a.config))) > 1
  return f'{a.run}/{a.stage}' if several else a.run + ''.join(a.stage.partition(' (')[1:])


def folders(path: str) -> list[epath.Path]:
  """Returns the folder that `path` means, or those of the seeds in it: W/finetune is that stage of every seed in W."""
  given = epath.Path(path).expanduser()
  of_seeds = list(runs.seeds(given).values())
  if not of_seeds and not given.exists():
    of_seeds = [folder / given.name for folder in runs.seeds(given.parent).values()]
  return of_seeds or [given]


def _of_folder(folder: epath.Path, every_stage: bool) -> Iterator[Answers]:
  if (folder / 'config.json').exists():
    config = files.read_json(folder / 'config.json')
    stages = [folder / name for name in runs.stage_names(config)]
    others = [p for p in stages if every_stage and not _classifies(p) and (p / 'metrics.jsonl').exists()]
    there = [p for p in stages if _classifies(p)]
    for stage in there or ([] if others else [predictions.find(str(folder)).parent]):
      yield _of_stage(stage, config, predictions.load(stage / predictions.FILE))
    for stage in others:
      yield _of_stage(stage, config, None)
    return
  file = predictions.find(str(folder))
  config = file.parent.parent / 'config.json'
  known = files.read_json(config) if config.exists() else {}
  if file.parent.name in runs.stage_names(known):
    yield _of_stage(file.parent, known, predictions.load(file))
  else:
    yield Answers(folder, _base(folder), '', {}, '', predictions.load(file))


def _classifies(stage: epath.Path) -> bool:
  if not (stage / predictions.FILE).exists():
    return False
  path = stage / 'result.json'
  held = files.read_json(path).get('metrics', {}) if path.exists() else {}
  return not held or any('accuracy' in m for m in held.values())


def _of_stage(folder: epath.Path, config: Mapping[str, Any], answered: Predictions | None) -> Answers:
  section, run, stage = config.get(folder.name, {}), str(folder.parent), folder.name
  data = section.get('data', {})
  if isinstance(section.get('checkpoint'), str):  # an evaluation's; in a stage it is a section
    trained = files.read_json(folder.parent / 'record.json').get('checkpoint', {})
    where = _CHECKPOINT.fullmatch(str(trained.get('path')))
    config, run = trained.get('config', {}), where['run'] if where else str(trained.get('path'))
    stage = where['stage'] + (where['ema'] or '') if where else ''
    stage += f' ({section["knn"]} neighbours)' if section.get('knn') else ''
  else:
    asked = section.get('eval', {})
    data = {**data, **{k: asked[k] for k in ('source', 'root') if asked.get(k)}}
  if re.fullmatch(r'seed\d+', _base(run)):
    run = os.path.dirname(os.path.abspath(run))
  return Answers(folder, _base(run), stage, config, _data(data), answered)


def _data(section: Mapping[str, Any]) -> str:
  source, root = (str(section.get(k, '')).split(',')[0] for k in ('source', 'root'))
  more = f'-{section["classes"]}' if source == 'affectnet' and 'classes' in section else ''
  if source in OF_MANY:
    more = ' ' + (section.get('name') or _base(root))
  return PAPER_NAMES.get(source, source) + more


def _base(path: Any) -> str:
  return os.path.basename(os.path.abspath(str(path)))


def by_seed(arm: Arm) -> dict[int, Predictions]:
  """Returns an arm's predictions by seed.

  Raises:
    UserError: when it has several of one seed, which a comparison of one set can't use.
  """
  held: dict[int, Predictions] = {}
  for a in arm.answers:
    if a.seed in held:
      raise UserError(f'{held[a.seed].path} and {a.folder} are of one seed; expected one of them')
    held[a.seed] = a.predictions
  return dict(sorted(held.items()))


def compared(
  a: Mapping[int, Predictions],
  b: Mapping[int, Predictions],
  identity: str = 'auto',
  samples: int = 2000,
  seed: int = 0,
) -> dict[str, Any]:
  """Compares two methods on one split, over the pictures that all have and the seeds that both have.

  Args:
    a: predictions of the one by seed.
    b: of the other; at least one seed is in both.
    identity: 'auto', 'none' or a regular expression (uncertainty.identities).
    samples, seed: of the bootstrap.

  Returns:
    What `uncertainty.across_seeds` does, with 'seeds' and 'pictures': {'all': in all, 'left_out'}.

  Raises:
    UserError: as `predictions.pair`, and on an identity that is not found.
  """
  seeds = [s for s in a if s in b]
  every = [held[s] for held in (a, b) for s in seeds]
  shared = predictions.aligned(every)
  logits = np.stack([p.logits for p in shared])
  found = uncertainty.across_seeds(
    shared[0].label,
    logits[: len(seeds)],
    logits[len(seeds) :],
    shared[0].class_names,
    uncertainty.identities(shared[0].id.tolist(), identity),
    samples,
    seed,
  )
  count = len(shared[0].id)
  return {
    'seeds': seeds,
    'pictures': {'all': count, 'left_out': max(len(p.id) for p in every) - count},
    **found,
  }
