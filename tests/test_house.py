"""The rules of the house (docs/design.md): which part may import which, and what a command may import before it knows its verb."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'mimic_jax'

# Each part and what it may import beside itself.
ARITHMETIC = {'runtime', 'boxes', 'clips', 'landmarks'}
DOWN = {
  'runtime': set(),
  'boxes': set(),
  'clips': set(),
  'landmarks': set(),
  'losses': ARITHMETIC,
  'mixing': ARITHMETIC,
  'randaugment': ARITHMETIC,
  'augment': ARITHMETIC | {'randaugment'},
  'hog': ARITHMETIC,
  'colour': ARITHMETIC | {'augment'},
  'face_parts': ARITHMETIC | {'augment'},
  'puzzles': ARITHMETIC | {'models'},
  'metrics': ARITHMETIC,
  'uncertainty': ARITHMETIC | {'metrics'},
  'verification': ARITHMETIC | {'uncertainty'},
  'models': ARITHMETIC,
  'data': ARITHMETIC,
  'report': {'runtime', 'data', 'metrics', 'uncertainty', 'verification'},
  'objectives': ARITHMETIC
  | {'augment', 'colour', 'face_parts', 'hog', 'losses', 'mixing', 'models', 'puzzles', 'report', 'defaults'},
  'weights': {'runtime', 'data', 'models'},
  'study': {'runtime', 'config', 'metrics', 'uncertainty', 'report', 'training'},
  'serving': {'runtime', 'augment', 'data', 'training', 'report'},
  'defaults': {'runtime', 'data'},
  'config': {'runtime', 'defaults', 'data', 'models', 'augment', 'objectives', 'describe'},
  'describe': {'config', 'defaults', 'objectives'},
  'main': {'runtime'},
}


def imported(file: pathlib.Path) -> set[str]:
  """Returns the parts of mimic_jax that a file imports, wherever in it."""
  parts = set()
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module == 'mimic_jax':
      parts |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('mimic_jax.'):
      parts.add(node.module.split('.')[1])
  return parts


@pytest.mark.parametrize('part', DOWN)
def test_arrows_point_down(part):
  files = [PACKAGE / f'{part}.py'] if (PACKAGE / f'{part}.py').exists() else (PACKAGE / part).rglob('*.py')
  for file in files:
    assert imported(file) <= DOWN[part] | {part}, file


def test_nothing_imports_the_commands():
  for file in PACKAGE.rglob('*.py'):
    if file.parent.name != 'commands':
      assert 'commands' not in imported(file), file


def test_nothing_outside_objectives_and_configs_imports_one_by_name():
  names = {f.stem for f in (PACKAGE / 'objectives').glob('*.py')} - {'__init__', 'base'}
  for file in PACKAGE.rglob('*.py'):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.ImportFrom) and file.parent.name != 'objectives':
        assert node.module not in {f'mimic_jax.objectives.{n}' for n in names}, file
        assert node.module != 'mimic_jax.objectives' or names.isdisjoint(a.name for a in node.names), file


@pytest.mark.parametrize(
  ('arguments', 'code', 'said'),
  [
    (['--help'], 0, 'evaluate'),
    (['--version'], 0, 'mimic_jax 0.'),
    (['evaluat'], 2, "'evaluat' is no verb (did you mean 'evaluate'?)"),
    (['--confg', 'x'], 2, "--confg is no flag (did you mean 'config'?)"),
    (['train', '--config', 'quickstart', '--wrkdir=x'], 2, "--wrkdir is no flag (did you mean 'workdir'?)"),
  ],
)
def test_the_front_door_answers_before_it_imports_anything_heavy(arguments, code, said):
  watched = (
    'import sys; from mimic_jax import main\n'
    'try: main.entry()\n'
    'finally: print(sorted({"jax", "grain", "tensorflow", "orbax", "matplotlib"} & set(sys.modules)), file=sys.stderr)'
  )
  done = subprocess.run([sys.executable, '-c', watched, *arguments], capture_output=True, text=True)
  assert done.returncode == code, done.stderr
  assert said in done.stdout + done.stderr
  assert done.stderr.splitlines()[-1] == '[]'


def test_every_verb_says_what_it_does():
  done = subprocess.run([sys.executable, '-m', 'mimic_jax'], capture_output=True, text=True, check=True)
  for file in (PACKAGE / 'commands').glob('[a-z]*.py'):
    first = ast.get_docstring(ast.parse(file.read_text())).splitlines()[0]
    assert f'{file.stem} ' in done.stdout
    assert first in done.stdout
