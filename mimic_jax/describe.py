"""A config for people: its header, the words behind its colon, and every field with its value, meaning and bounds."""

import ast
import inspect
import io
import math
import pathlib
import textwrap
import tokenize
from collections.abc import Callable, Mapping
from typing import Any

from mimic_jax import config as config_lib
from mimic_jax import defaults, objectives

WIDTH = 110

# The functions whose lines say what fields mean, by the section that each fills in; an objective's `defaults` comes on top.
_COMMON = {defaults.base: '', defaults.encoder: 'model.'}
_OF_A_STAGE = {
  defaults.stage: '',
  defaults.data: 'data.',
  defaults.evaluation: 'eval.',
  defaults.optimiser: 'optim.',
  defaults.checkpoint: 'checkpoint.',
}


def describe(path: pathlib.Path, config: Mapping[str, Any]) -> str:
  """Returns what `mimic train --config X --help` says.

  Args:
    path: of the config file.
    config: with the overrides of the command line.
  """
  parts = [ast.get_docstring(ast.parse(path.read_text('utf-8'))) or str(path)]
  if groups := getattr(defaults.words, 'groups', ()):
    words = '; '.join(' | '.join(group) for group in groups)
    parts.append(f"Words behind the ':', comma-separated, the first of each group is the default: {words}")
  whole = {k: v for k, v in config.items() if not _is_stage(v)}
  parts.append('Fields of the run:\n' + _table(whole, 'config', _meanings(_COMMON), ''))
  for name in config_lib.stages(config):
    kind = objectives.find(config[name]['objective'])
    meanings = _meanings({**_OF_A_STAGE, kind.defaults: ''})
    title = f"Fields of stage {name}, objective '{config[name]['objective']}':\n"
    parts.append(title + _table(config[name], f'config.{name}', meanings, config[name]['objective']))
  return '\n\n'.join(parts)


def _is_stage(value: Any) -> bool:
  return (isinstance(value, Mapping) and 'objective' in value) or hasattr(value, 'objective')


def _table(section: Mapping[str, Any], prefix: str, meanings: Mapping[str, str], objective: str) -> str:
  choices, ranges = config_lib.limits(objective)
  lines = []
  for name, value in config_lib.fields(section):
    key = config_lib.limited_as(name)
    bounds = next((ranges[k] for k in (key, name.rsplit('.', 1)[-1]) if k in ranges), None)
    said = [meanings[name]] if meanings.get(name) else []
    if key in choices and not all(word in meanings.get(name, '') for word in choices[key]):
      said.append('one of ' + ' | '.join(choices[key]))
    if bounds:
      low, high = bounds
      said.append(f'at least {low}' if high == math.inf else f'{low} to {high}')
    text = f'  --{prefix}.{name}={value!r}' + (f'   {"; ".join(said)}' if said else '')
    lines.append(textwrap.fill(text, WIDTH, subsequent_indent=' ' * 8, break_on_hyphens=False))
  return '\n'.join(lines)


def _meanings(makers: Mapping[Callable[..., Any], str]) -> dict[str, str]:
  """Returns field → the comment beside the line that sets its default."""
  found: dict[str, str] = {}
  for maker, prefix in makers.items():
    source = textwrap.dedent(inspect.getsource(maker))
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
      if token.type == tokenize.COMMENT:
        comments[token.start[0]] = token.string.lstrip('# ')
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
        name = prefix + ast.unparse(node.targets[0]).partition('.')[2]
        beside = [comments[k] for k in range(node.lineno, node.end_lineno + 1) if k in comments]
        if beside:
          found[name] = ' '.join(beside)
  return found
