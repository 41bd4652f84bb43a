"""What is handed out: the source distribution, what it installs, and the notebook, run by what is installed."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# What a clone has beside its files, by .gitignore.
NOT_OURS = shutil.ignore_patterns('.*', '__pycache__', '*.egg-info', 'build', 'dist', 'runs')

pytestmark = pytest.mark.processes


@pytest.fixture(scope='module')
def sdist(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sdist')
  shutil.copytree(ROOT, folder / 'clone', ignore=NOT_OURS)
  build = 'import setuptools.build_meta as b; b.build_sdist("..")'
  subprocess.run([sys.executable, '-c', build], cwd=folder / 'clone', check=True)
  (made,) = folder.glob('mimic_jax-*.tar.gz')
  return made


@pytest.fixture(scope='module')
def installed(sdist, tmp_path_factory):
  """A virtual environment with the wheel that pip makes of the source distribution; its packages are those of the tests."""
  folder = tmp_path_factory.mktemp('installed')
  subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
  (packages,) = folder.glob('lib/*/site-packages')
  # A path from a .pth is no site folder: an editable install that lies there is not seen.
  (packages / 'packages_of_the_tests.pth').write_text(sysconfig.get_path('purelib'))
  pip = [sys.executable, '-m', 'pip', '--python', folder / 'bin' / 'python', 'install', '--quiet']
  subprocess.run([*pip, '--no-index', '--no-deps', '--no-build-isolation', sdist], check=True)
  return folder


def files(folder: pathlib.Path) -> set[str]:
  found = (f.relative_to(folder) for f in folder.rglob('*') if f.is_file() and '__pycache__' not in f.parts)
  return {str(f) for f in found}


def test_all_of_the_package_is_installed_and_nothing_else(installed):
  (packages,) = installed.glob('lib/*/site-packages')
  ours = files(ROOT / 'mimic_jax') | {f'configs/{f}' for f in files(ROOT / 'configs')}
  assert files(packages / 'mimic_jax') == ours
  assert not (packages / 'tests').exists()


def test_the_source_distribution_has_what_its_readme_links_to_and_no_tests(sdist):
  with tarfile.open(sdist) as t:
    names = {name.partition('/')[2] for name in t.getnames()}
  links = re.findall(r'\]\(([^):#]+)[)#]', (ROOT / 'README.md').read_text('utf-8'))
  assert {*links, 'LICENSE', 'requirements.txt'} <= names
  assert not [name for name in names if name.startswith('tests')]


def test_the_notebook_runs_where_the_package_is_installed(installed, tmp_path):
  cells = json.loads((ROOT / 'docs' / 'quickstart.ipynb').read_text('utf-8'))['cells']
  code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
  program = '\n'.join(c for c in code if '%pip' not in c)
  for pattern, instead in (
    ('--config quickstart ', '--config quickstart:minute '),
    ('(?m)^!(.*)', r'__import__("subprocess").run("\1", shell=True, check=True)'),
    ('from IPython.display import HTML', 'HTML = pathlib.Path("shown.html").write_text'),
  ):
    program, found = re.subn(pattern, instead, program)
    assert found == 1, pattern
  (tmp_path / 'notebook.py').write_text(program)

  environment = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'XLA_FLAGS')}
  environment |= {'PATH': f'{installed}/bin:{os.environ["PATH"]}', 'MPLBACKEND': 'Agg'}
  command = [installed / 'bin' / 'python', 'notebook.py']
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  record = (tmp_path / 'quickstart' / 'record.json').read_text('utf-8')
  assert f'{installed}/bin/mimic' in record, 'another mimic_jax was run'
  assert (tmp_path / 'shown.html').read_text('utf-8').count('data:image/') > 3
  assert done.stdout.count(' read as ') == 14
