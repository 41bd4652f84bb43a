"""A model card: what an exported model is, what it was trained on, how well it does, what it is for and what it is not."""

from collections.abc import Mapping, Sequence
from typing import Any

from mimic_jax import uncertainty
from mimic_jax.report import citations, tables
from mimic_jax.report.run import Run, Stage

# What is known of a set's terms and of published weights' (their kind has it, weights/layouts.py).
DATA_TERMS = {
  'ferplus': "labels MIT (Microsoft's FERPlus); the pictures are FER2013's, from the web, for research",
  'rafdb': 'for non-commercial research, by agreement with its authors',
  'affectnet': 'for non-commercial research, by agreement with its authors',
}
WEIGHTS_TERMS = {
  'MAE': 'CC-BY-NC 4.0 where they are the released ones: not for commercial use, and what is fine-tuned from them inherits that',
  'MoCo v3': 'CC-BY-NC 4.0 where they are the released ones: not for commercial use',
  'DeiT': 'Apache-2.0 where they are the released ones',
  'DINO': 'Apache-2.0 where they are the released ones',  # DINOv2, too
}
DRAWN = 'drawn by mimic_jax, free'
UNKNOWN = 'not known here; see where they are from'
LIMITS = """\
- For research on facial expressions, and for pictures like those it was trained on, cut out as they were.
- It says which expression people would name, not what a person feels. In-the-wild labels are noisy: people disagree on many
  pictures, and rare classes have few.
- Faces of other ages, skin colours, poses, lights and cultures than in the data may be judged worse. Measure before use.
- Inferring emotions from faces is regulated in places: the EU's AI Act (Regulation 2024/1689, article 5) forbids it at work
  and in education but for medical and safety reasons, and counts it as high risk elsewhere (annex III).
- Not for decisions about people."""


def text(
  run: Run | None,
  stage_name: str,
  step: int,
  ema: bool,
  *,
  about: Mapping[str, Any],
  kinds: Sequence[str],
  code: str,
  library: str,
) -> str:
  """Returns the card, Markdown with Hugging Face's metadata.

  Args:
    run: whose model it is; None where there is no run, as of published weights.
    stage_name, step, ema: which weights of it.
    about: title, value: of the model, in this order.
    kinds: what its initial weights are, from the first on, in words.
    code: that loads it, Python.
    library: that does.
  """
  stage = next((s for s in run.stages if s.name == stage_name), None) if run else None
  title = run.name if run else str(about.get('weights', 'a model'))
  header = ['---', f'library_name: {library}', 'license: other', 'tags:', '- mimic_jax']
  if 'classes' in about:
    header += ['- facial-expression-recognition', 'pipeline_tag: image-classification']
  parts = ['\n'.join([*header, '---']), f'# {title}', _list(about), f'```python\n{code}\n```']
  if stage:
    parts += ['## Training', _list(_training(run, stage))]
    own = {k: v for k, v in tables.splits(stage).items() if k.endswith('_ema') == ema}
    if stage.result.get('steps') == step:
      parts += [section for split, held in own.items() for section in _scores(split, held)]
    else:
      parts.append(f'Not measured: these are the weights of step {step:,}, which is not the last of its run.')
  parts += ['## Licences', _list(_licences(run, stage, kinds)), '## Intended use and limits', LIMITS]
  return '\n\n'.join(parts) + '\n'


def _list(rows: Mapping[str, Any]) -> str:
  return '\n'.join(f'- {name}: {value}' for name, value in rows.items())


def _records(run: Run, stage: Stage) -> dict[str, Any]:
  return run.record.get('data', {}).get(stage.name, {})


def _training(run: Run, stage: Stage) -> dict[str, Any]:
  """Returns what was learned from, and how."""
  records, result = _records(run, stage), stage.result
  train, reading = records.get('train', {}), records.get('reading', {})
  rows = {
    'data': f'{train.get("source", "not recorded")}, {tables.number(train.get("count"))} pictures',
    'labels': train.get('label_rule', 'none'),
    'alignment': _alignment(reading.get('align', {})),
    'objective': f'{tables.objective(stage)}, {tables.number(result.get("steps"))} steps, from {tables.initial(run, stage)}',
  }
  if counts := train.get('class_counts'):
    rows['pictures of each class'] = ', '.join(f'{name} {n:,}' for name, n in counts.items())
  measured = {name: r for name, r in records.items() if name not in ('train', 'reading')}
  for name, r in measured.items():
    rows[f'measured on {name}'] = (
      f'{r.get("source")}, {tables.number(r.get("count"))} pictures, label rule {r.get("label_rule", "none")}'
    )
  rows['split hashes'] = ', '.join(
    f'{name} {str(r.get("split_hash"))[:12]}' for name, r in records.items() if 'split_hash' in r
  )
  return rows


def _alignment(align: Mapping[str, Any]) -> str:
  return (
    ', '.join(str(v) for k, v in align.items() if k in ('align', 'size', 'detector', 'of_release') and v)
    or 'none'
  )


def _scores(split: str, held: Mapping[str, Any]) -> list[str]:
  """Returns a split's scores with their intervals, and its classes."""
  if 'accuracy' not in held:
    said = {k: f'{v:.4f}' for k, v in held.items() if isinstance(v, float)}
    return [f'## Results on {split}', _list(said)] if said else []
  rows = []
  for name in ('accuracy', 'mean_class_accuracy', 'macro_f1', 'accuracy_without_duplicates', 'largest_class'):
    if name in held:
      ends = tables.interval(held, name)
      rows.append(
        f'| {name.replace("_", " ")} | {tables.percent(held[name])} | {tables.span(ends) if ends else tables.NONE} |'
      )
  scores = '\n'.join(['| score | | 95 % interval |', '|---|---|---|', *rows])
  rows = []
  for name, row in held.get('per_class', {}).items():
    n = row['support']
    ends = tables.span(uncertainty.wilson(round(row['recall'] * n), n), 1) if n else tables.NONE
    figures = ' | '.join(tables.percent(row[k], 1) for k in ('precision', 'f1'))
    rows.append(f'| {name} | {n:,} | {tables.percent(row["recall"], 1)} | {ends} | {figures} |')
  classes = '\n'.join(
    [
      '| class | pictures | recall | 95 % interval (Wilson) | precision | F1 |',
      '|---|---|---|---|---|---|',
      *rows,
    ]
  )
  return [f'## Results on {split}, {tables.number(held.get("count"))} pictures', scores, classes]


def _licences(run: Run | None, stage: Stage | None, kinds: Sequence[str]) -> dict[str, str]:
  rows = {}
  for kind in kinds:
    known = next((terms for name, terms in WEIGHTS_TERMS.items() if name in kind), UNKNOWN)
    rows[f'initial weights ({kind})'] = known
  for name, _ in citations.sets(_records(run, stage).get('train', {})) if stage else ():
    rows[f'data ({name})'] = DATA_TERMS.get(name, DRAWN if name.startswith('synthetic_') else UNKNOWN)
  return rows or {'weights': UNKNOWN}
