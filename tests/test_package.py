"""What is handed out: the source distribution and what it installs."""

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
