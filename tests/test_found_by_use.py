"""Faults that were found by using the program, each with inputs of its kind and what should come instead.

The numbers are those of the list in which they were reported.
"""

import argparse
import concurrent.futures
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import unicodedata
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import FrozenConfigDict
from PIL import Image
from safetensors.numpy import save_file

from mimic_jax import augment, data, models, objectives, uncertainty, weights
from mimic_jax import config as config_lib
from mimic_jax.commands import align
from mimic_jax.data import classes, files, selection
from mimic_jax.data import source as sources
from mimic_jax.data.sets import folder
from mimic_jax.data.sets import tfds as tfds_set
from mimic_jax.runtime import checkpoint, cli, preemption, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import log, loop, results, workdir
from mimic_jax.training import stage as stage_lib
from tests import small
from tests.data.test_pipeline import Numbers, evaluate, take, train
from tests.weights.test_weights import hugging_face, mae_decoder, timm_blocks, timm_encoder

ROOT = pathlib.Path(__file__).parents[1]


def parse(*flags: str) -> config_lib.Command:
  return config_lib.parse(['main', '--config=quickstart', *flags])


def picture(path: pathlib.Path | str, side: tuple[int, int] = (9, 7)) -> None:
  os.makedirs(os.path.dirname(path), exist_ok=True)
  pixels = np.random.default_rng(zlib.crc32(os.fsencode(path))).integers(
    0, 256, (side[1], side[0], 3), np.uint8
  )
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'PNG')
  with open(path, 'wb') as f:
    f.write(buffer.getvalue())


# 5, 6: two fields for one thing, or none
@pytest.mark.parametrize(
  'flags',
  [
    ['--config.pretrain.optim.lr=1e-3'],
    ['--config.pretrain.optim.blr=0'],
    ['--config.finetune.optim.lr=0'],
    ['--config.finetune.optim.blr=1e-3'],
    ['--config.scratch.optim.blr=0.5'],
  ],
)
def test_a_learning_rate_is_given_once(flags):
  with pytest.raises(
    UserError, match=r'optim\.lr is .* and config\.\w+\.optim\.blr .*; expected one of them above 0'
  ):
    parse(*flags)


# 15: pixels are 0 to 1 here
@pytest.mark.parametrize(
  'flag',
  ['mean=(123.675,116.28,103.53)', 'std=(58.395,57.12,57.375)', 'mean=(127.5,127.5,127.5)', 'std=(0.2,0.2,0.0)', 'mean=(-1.0,0.5,0.5)'],
)  # fmt: skip
def test_statistics_of_pixels_of_0_to_255_are_refused(flag):
  with pytest.raises(UserError, match=r'expected three numbers of 0 to 1'):
    parse(f'--config.pretrain.augment.{flag}')


# 36: the default folder; 67: the home folder
def test_the_default_folder_has_no_comma_and_a_tilde_is_the_home_folder(monkeypatch):
  monkeypatch.setenv('HOME', '/home/someone')
  assert (
    config_lib.parse(['main', '--config=finetune_rafdb:vitb16,ce']).workdir == 'runs/finetune_rafdb_vitb16_ce'
  )
  command = config_lib.parse(
    [
      'main',
      '--config=finetune_rafdb',
      '--workdir=~/x',
      '--config.init=~/w.pth',
      '--config.data.root=~/faces',
    ]
  )
  assert command.workdir == '/home/someone/x'
  assert command.config.init == command.config.finetune.init == '/home/someone/w.pth'
  assert command.config.finetune.data.root == '/home/someone/faces'
  assert parse('--workdir=gs://b/~x').workdir == 'gs://b/~x'


@pytest.mark.parametrize(
  'flag', ['--raw=~/a b', '--out=~', '--name=~/c,d', '--splits=x', '--raw=/a~/b', '--out=a=~/b']
)
def test_the_home_folder_is_known_behind_an_equals_sign(flag, monkeypatch):
  monkeypatch.setenv('HOME', '/home/someone')
  name, _, value = flag.partition('=')
  parser = cli.Parser('x', 'y')
  parser.add_argument(name)
  parsed = getattr(parser.parse_args([flag]), name[2:])
  assert parsed == (value.replace('~', '/home/someone', 1) if value.startswith('~') else value)


def test_a_config_is_found_in_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'mine.py').write_text((ROOT / 'configs' / 'quickstart.py').read_text())
  assert config_lib.find_config('~/mine.py:x') == (tmp_path / 'mine.py', 'x')


# 61, 62: what changes nothing that is computed may change when a run is resumed
@pytest.mark.parametrize(
  'flag',
  [
    'data.on_bad_image=skip',
    'data.root=/elsewhere',
    'eval.root=/elsewhere',
    'data.threads=3',
    'data.prefetch=9',
    'data.cache=False',
  ],
)
def test_a_run_is_resumed_whatever_does_not_change_what_it_computes(flag):
  old = workdir.as_dict(parse().config)
  assert config_lib.differences(old, workdir.as_dict(parse(f'--config.finetune.{flag}').config)) == []
  changed = workdir.as_dict(parse('--config.finetune.data.split=valid').config)
  assert config_lib.differences(old, changed) == ['finetune.data.split: train → valid']


# 62: the pictures that a run is measured on are those it began with, wherever they are
@pytest.mark.processes
@pytest.mark.parametrize('field', ['data', 'eval'])
def test_a_run_goes_on_with_the_same_pictures_to_be_measured_on_and_no_others(field, tmp_path, monkeypatch):
  for name in ('show', '_draw'):
    monkeypatch.setattr(results, name, lambda *_, **__: None)
  monkeypatch.setattr(results.page, 'write', lambda *_, **__: None)
  for split, n in (('train', 16), ('valid', 6), ('test', 4)):
    for k in range(n):
      picture(tmp_path / 'here' / split / f'c{k % 2}' / f'{k:02}.png', (16, 16))

  def run(place):
    changes = {'data.source': 'folder', 'data.root': str(tmp_path / 'here'), 'eval.splits': 'valid,test'}
    changes |= {'steps': 1, f'{field}.root': str(tmp_path / place)}
    config = FrozenConfigDict(small.run_config(finetune=small.mimic_stage(**changes)))
    folder = workdir.open_run(str(tmp_path / 'run'), config)[0]
    stage = stage_lib.Stage(config, 'finetune', folder, sharding.make_mesh())
    workdir.begin(folder, config)
    loop.run_stage(stage)

  run('here')
  for place, change in {
    'gone': lambda base: (base / 'test/c1/03.png').unlink(),
    'more': lambda base: shutil.copy(base / 'valid/c0/00.png', base / 'valid/c0/06.png'),
    'moved': lambda base: (base / 'test/c1/03.png').rename(base / 'test/c0/03.png'),
    'renamed': lambda base: (base / 'valid/c1/05.png').rename(base / 'valid/c1/07.png'),
  }.items():
    (tmp_path / 'run/finetune/result.json').unlink(missing_ok=True)
    shutil.copytree(tmp_path / 'here', tmp_path / place)
    run(place)
    assert (tmp_path / 'run/finetune/result.json').exists()
    (tmp_path / 'run/finetune/result.json').unlink()
    change(tmp_path / place)
    split = 'test' if place in ('gone', 'moved') else 'valid'
    told = rf"config.finetune.{field}.root '{tmp_path}/{place}' no longer holds the '{split}' that this run is measured on"
    with pytest.raises(UserError, match=told):
      run(place)


# 26, 50: a workdir of another config; one that orbax can't read
def test_a_refused_workdir_says_the_way_and_patterns_are_no_names(tmp_path):
  config = small.run_config(finetune=small.mimic_stage())
  workdir.begin(workdir.epath.Path(tmp_path / 'run'), FrozenConfigDict(config))
  (tmp_path / 'run' / 'finetune').mkdir()
  (tmp_path / 'run' / 'finetune' / 'result.json').write_text('{}')
  config.seed = 7
  with pytest.raises(UserError, match=rf'another --workdir, where --config.init={tmp_path}/run begins'):
    workdir.open_run(str(tmp_path / 'run'), FrozenConfigDict(config))
  for name in ('a[1]', 'a]', 'x*', 'what?'):
    with pytest.raises(UserError, match=r'--workdir is .*; expected a name without'):
      workdir.open_run(str(tmp_path / name), FrozenConfigDict(config))


# 10, 72: Ctrl-C and a closed terminal are heard like SIGTERM
@pytest.mark.parametrize('name', [s.name for s in preemption.SIGNALS])
def test_every_way_to_be_told_to_stop_stops_at_the_next_place(name):
  code = f"""
import os, signal
from mimic_jax.runtime import preemption
for s in preemption.SIGNALS:
  signal.signal(s, signal.default_int_handler if s == signal.SIGINT else signal.SIG_DFL)
preemption.note()
preemption.look()
os.kill(os.getpid(), signal.{name})
try:
  preemption.look()
except preemption.Preempted:
  print('heard')
if '{name}' == 'SIGINT':
  try:
    os.kill(os.getpid(), signal.SIGINT)
    preemption.look()
  except KeyboardInterrupt:
    print('at once')
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, timeout=120)
  assert done.stdout.split('\n')[:-1] == (['heard', 'at once'] if name == 'SIGINT' else ['heard']), (
    done.stderr
  )
  assert ('Ctrl-C once more stops at once' in done.stderr) == (name == 'SIGINT')


# 11, 63: any encoding of the terminal and of names
@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'cp437', 'utf-8'])
@pytest.mark.parametrize(
  'arguments', [['--help'], ['compare', '--help'], ['train', '--config', 'quickstart', '--help'], ['nope']]
)
def test_what_the_output_can_not_spell_is_no_error(encoding, arguments):
  done = subprocess.run(
    [sys.executable, '-m', 'mimic_jax', *arguments], capture_output=True, cwd=ROOT, env={**os.environ, 'PYTHONIOENCODING': encoding}
  )  # fmt: skip
  assert b'Traceback' not in done.stderr
  assert done.returncode == (2 if arguments == ['nope'] else 0)


def test_a_backend_that_a_notebook_names_for_matplotlib_need_not_be_there(tmp_path):
  command = [sys.executable, '-m', 'mimic_jax', 'report', str(tmp_path)]
  done = subprocess.run(
    command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, 'MPLBACKEND': 'not here'}
  )
  assert done.returncode == 2
  assert 'it has no config.json' in done.stderr


@pytest.mark.processes
def test_data_with_letters_that_the_locale_lacks_are_read_and_such_a_run_folder_is_refused(tmp_path):
  for k in range(6):
    picture(tmp_path / 'über grün' / 'train' / f'c{k % 2}' / f'{k}.png', (16, 16))
  flags = [
    '--config=finetune_folder:small',
    f'--config.data.root={tmp_path}/über grün',
    '--config.finetune.steps=1',
  ]
  flags += [f'--config.model.{f}' for f in ('image_size=16', 'patch_size=8', 'dim=16', 'heads=2', 'depth=1')]
  flags += [
    '--config.finetune.batch_images=2',
    '--config.finetune.eval.splits=',
    '--config.finetune.data.held_out=0',
    '--config.log.tensorboard=False',
  ]
  env = {
    **os.environ,
    'LC_ALL': 'C',
    'PYTHONUTF8': '0',
    'HOME': '/nonexistent',
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': '',
  }
  command = [sys.executable, '-m', 'mimic_jax.main', *flags]
  for name, code in (('run', 0), ('läuft', 2)):
    done = subprocess.run(
      [*command, f'--workdir={tmp_path}/{name}'], capture_output=True, cwd=tmp_path, env=env
    )
    assert done.returncode == code, done.stderr.decode(errors='replace')[-2000:]
  assert b'Traceback' not in done.stderr
  assert b'expected one of UTF-8, such as LC_ALL=C.UTF-8' in done.stderr
  assert (tmp_path / 'run' / 'report.html').exists()


# 13: pixels of a resample are exact on every accelerator
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_resampling_asks_for_the_highest_precision(interpolation):
  a = {'interpolation': interpolation, 'mean': (0.5,) * 3, 'std': (0.5,) * 3}
  pictures = jax.ShapeDtypeStruct((8, 20, 20, 3), jnp.uint8)
  views = jax.jit(lambda x: augment.training_views(jax.random.key(0), x, views=2, size=16, scale=(0.2, 1), ratio=(1, 1), flip=0.5, **a))  # fmt: skip
  whole = jax.jit(lambda x: augment.evaluation_view(x, 16, interpolation, a['mean'], a['std']))
  for program in (views, whole):
    products = [line for line in program.lower(pictures).as_text().splitlines() if 'dot_general' in line]
    assert products
    assert all('HIGHEST' in line for line in products)


# 14, 22: splits by any case; the way where one is missing
def test_splits_are_found_whatever_their_case_and_a_missing_one_has_a_way(tmp_path):
  for split in ('Train', 'Validation', 'TEST'):
    for name in ('cat', 'dog'):
      picture(tmp_path / split / name / 'a.png')
  for split, where in (('train', 'Train'), ('valid', 'Validation'), ('test', 'TEST')):
    s = folder.build(str(tmp_path), split, {})
    assert (s.class_names, s.id(0)) == (('cat', 'dog'), f'{where}/cat/a.png')
  os.rename(tmp_path / 'Validation', tmp_path / 'other')
  with pytest.raises(
    UserError, match=r"no split 'valid' .*--config.STAGE.eval.splits=(test|train) measures on that one"
  ):
    folder.build(str(tmp_path), 'valid', {})


# 16: names that are no UTF-8; 71: one name spelled in two ways
def test_class_names_are_utf8_and_compared_composed(tmp_path):
  for split, form in (('train', 'NFC'), ('valid', 'NFD')):
    for name in ('Ärger', 'joie é', 'x'):
      picture(tmp_path / split / unicodedata.normalize(form, name) / 'a.png')
  train, valid = (folder.build(str(tmp_path), split, {}) for split in ('train', 'valid'))
  assert train.class_names == valid.class_names
  assert [valid.label(i) for i in range(3)] == [0, 1, 2] or sorted(valid.label(i) for i in range(3)) == [
    0,
    1,
    2,
  ]
  assert valid[0]['image'].shape == (7, 9, 3)
  assert classes.match([unicodedata.normalize('NFD', 'é')], ['é']) == [0]
  for raw in (b'\xff', b'a\xe4', b'\x80\x81'):
    picture(os.fsdecode(os.fsencode(tmp_path / 'odd' / 'fine') + raw + b'/a.png'))
    picture(tmp_path / 'odd' / 'other' / 'a.png')
    with pytest.raises(UserError, match='is not UTF-8; expected') as e:
      folder.build(str(tmp_path / 'odd'), 'train', {})
    str(e.value).encode()


# 17: a picture lies as it is meant in every format
@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['TIFF', 'JPEG', 'PNG', 'WEBP'])
def test_the_size_of_a_header_is_that_of_the_decoded_picture(orientation, kind, tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (60, 108, 3), np.uint8)
  image = Image.fromarray(pixels)
  exif = image.getexif()
  exif[0x0112] = orientation
  how = {'tiffinfo': {0x0112: orientation}} if kind == 'TIFF' else {'exif': exif.tobytes()}
  image.save(tmp_path / 'a', kind, **how)
  decoded = sources.decode_image(str(tmp_path / 'a'), 10**6)
  with sources.open_image(str(tmp_path / 'a'), 10**6) as opened:
    assert sources.upright_size(opened) == decoded.shape[:2]


# 25, 52: nothing to tell apart
@pytest.mark.parametrize(
  'layout', ['one/a.png', 'images/a.png images/b.png labels/a.txt', 'x/y/z/a.png x/y/w/b.png']
)
def test_one_class_is_refused_with_its_name(layout, tmp_path):
  for name in layout.split():
    path = tmp_path / 'train' / name
    picture(path) if name.endswith('.png') else (path.parent.mkdir(parents=True), path.write_text('0 1 2'))
  found = folder.build(str(tmp_path), 'train', {})
  stage = small.mimic_stage(**{'data.source': 'folder', 'data.root': str(tmp_path)})
  with pytest.raises(
    UserError, match=rf"has one, '{layout.split('/')[0]}'; expected two or more class folders"
  ):
    objectives.make(stage, small.model_section(), found.class_names, 'objective')


# 14, 22, 52: a root without a known split is no training split when it holds other ones
@pytest.mark.parametrize(
  ('names', 'like'),
  [
    ('train_set val_set', True),
    ('fold1 fold2 fold3', True),
    ('Train_aligned Test_aligned', True),
    ('train-images test-images', True),
    ('my_training my_validation my_testing', True),
    ('train2017 val2017', True),
    ('cat train_station', False),
    ('trained untrained', False),
    ('contest protest', False),
    ('value valley', False),
  ],
)
def test_folders_named_like_splits_are_no_classes(names, like, tmp_path):
  names = names.split()
  for name in names:
    for k in range(2):
      picture(tmp_path / name / f'c{k}' / 'a.png')
  if like:
    with pytest.raises(
      UserError, match=rf'holds {", ".join(sorted(names))}, named like splits and not like classes'
    ):
      folder.build(str(tmp_path), 'train', {})
  else:
    assert folder.build(str(tmp_path), 'train', {}).class_names == tuple(sorted(names))


# 39, 51, 53: what aligns a folder walks through it as the sources do
def test_align_walks_as_the_sources_do(tmp_path, monkeypatch):
  monkeypatch.setitem(align.DETECTORS, 'mtcnn', lambda: lambda image: [])
  monkeypatch.setitem(align.NAMES, 'mtcnn', lambda: 'blind')
  picture(tmp_path / 'far' / 'deep' / 'b.png', (20, 20))
  picture(tmp_path / 'src' / 'cat' / 'a.png', (20, 20))
  os.symlink(tmp_path / 'far', tmp_path / 'src' / 'dog')
  picture(tmp_path / 'src' / 'runs' / 'x' / 'pictures' / 'mixed.png', (20, 20))
  picture(tmp_path / 'src' / '.cache' / 'c.png', (20, 20))
  for file in ('config.json', 'record.json'):
    (tmp_path / 'src' / 'runs' / 'x' / file).write_text('{}')
  arguments = [str(tmp_path / 'src'), str(tmp_path / 'dst'), '--size=16', '--workers=0']
  align.main(arguments)
  assert files.pictures(str(tmp_path / 'dst')) == ['cat/a.png', 'dog/deep/b.png']
  for target in ('.', '..', '../..'):
    link = tmp_path / 'src' / 'cat' / 'loop'
    os.symlink(os.path.join(link.parent, target), link)
    with pytest.raises(UserError, match=r"'[^']*loop[^']*' is a link back to") as e:
      align.main([arguments[0], str(tmp_path / 'other'), *arguments[2:]])
    assert len(str(e.value)) < 500
    link.unlink()


@pytest.mark.parametrize('where', ['folder', 'files', 'a folder above'])
@pytest.mark.parametrize('source', ['folder', 'rafdb', 'rafdb official', 'ferplus', 'affectnet'])
def test_every_source_follows_links(source, where, tmp_path):
  far = tmp_path / 'far'
  for k in range(8):
    picture(
      far
      / 'pictures'
      / {'rafdb official': f'train_{k:05}_aligned.jpg', 'ferplus': f'fer{k:07}.png'}.get(source, f'{k}.jpg'),
      (48, 48),
    )
  place = {
    'folder': 'train/a',
    'rafdb': 'train/1',
    'rafdb official': 'Image/aligned',
    'ferplus': 'FER2013Train',
    'affectnet': 'train_set/images',
  }[source]
  root = tmp_path / 'root'
  (root / place).parent.mkdir(parents=True)
  if source == 'rafdb official':
    (root / 'EmoLabel').mkdir()
    (root / 'EmoLabel/list_patition_label.txt').write_text(
      '\n'.join(f'train_{k:05}.jpg {k % 7 + 1}' for k in range(8))
    )
  if source == 'ferplus':
    votes = ','.join(['10'] + ['0'] * 9)
    (far / 'pictures' / 'label.csv').write_text(
      '\n'.join(f'fer{k:07}.png,"(0, 0, 48, 48)",{votes}' for k in range(8))
    )
  if source == 'affectnet':
    (root / 'train_set/annotations').mkdir()
    for k in range(8):
      np.save(root / 'train_set/annotations' / f'{k}_exp.npy', str(k % 7))
  if where == 'files':
    (root / place).mkdir()
    for path in (far / 'pictures').iterdir():
      os.symlink(path, root / place / path.name)
  else:
    os.symlink(far / 'pictures', root / place)
  if where == 'a folder above':
    os.symlink(root, tmp_path / 'link')
    root = tmp_path / 'link'
  s = data.build(source.split()[0], str(root), 'train', {})
  assert len(s) == 8
  assert s[0]['image'].shape == (48, 48, 3)


# 51: run folders are no data; 53, 39: links are followed, loops are not; 56: endings that are no picture's are said
def test_what_is_walked_through(tmp_path):
  for name in ('cat/a.png', 'dog/b.jfif', 'dog/deep/c.png'):
    picture(tmp_path / 'faces' / name)
  for name in ('x', 'deeper/y'):
    run = tmp_path / 'faces' / 'runs' / name
    picture(run / 'finetune' / 'pictures' / 'mixed.png')
    for file in ('config.json', 'record.json'):
      (run / file).write_text('{}')
  (tmp_path / 'elsewhere').mkdir()
  os.rename(tmp_path / 'faces' / 'cat', tmp_path / 'elsewhere' / 'cat')
  os.symlink(tmp_path / 'elsewhere' / 'cat', tmp_path / 'faces' / 'cat')
  for odd in ('dog/movie.mp4', 'dog/Thumbs.db', 'dog/notes.txt', 'cat/raw.heic'):
    (tmp_path / 'faces' / odd).write_bytes(b'x')
  s = folder.build(str(tmp_path / 'faces'), 'train', {})
  assert s.class_names == ('cat', 'dog')
  assert [s.id(i) for i in range(len(s))] == ['cat/a.png', 'dog/b.jfif', 'dog/deep/c.png']
  (said,) = s.record()['warnings']
  assert 'not read' in said
  assert '(.db, .heic, .mp4)' in said
  for target in ('.', '..', 'deep'):
    link = tmp_path / 'faces' / 'dog' / 'deep' / 'loop'
    os.symlink(link if target == 'deep' else os.path.join(link.parent, target), link)
    with pytest.raises(UserError, match=r"dog/deep/loop' (is a link back to|can't be followed)") as e:
      folder.build(str(tmp_path / 'faces'), 'train', {})
    assert len(str(e.value)) < 500
    link.unlink()


def test_rafdb_follows_links_as_folders_do(tmp_path):
  for split in ('train', 'test'):
    for k in range(1, 8):
      picture(tmp_path / 'far' / split / str(k) / f'{split}_{k:05}_aligned.jpg')
      (tmp_path / 'here' / split).mkdir(parents=True, exist_ok=True)
      os.symlink(tmp_path / 'far' / split / str(k), tmp_path / 'here' / split / str(k))
  s = data.build('rafdb', str(tmp_path / 'here'), 'train', {})
  assert list(s.record()['class_counts'].values()) == [1] * 7


# 37: the originals of RAF-DB without the aligned ones: the command that is named makes what is read
@pytest.mark.parametrize('name', ['list_patition_label.txt', 'list_partition_label.txt'])
@pytest.mark.parametrize('below', ['', "its 'own' place/basic"])
def test_rafdbs_originals_alone_have_a_way(name, below, tmp_path, monkeypatch):
  root = tmp_path / below
  for split in ('train', 'test'):
    for k in range(1, 8):
      picture(root / 'Image' / 'original' / f'{split}_{k:05}.jpg', (30, 20))
  (root / 'EmoLabel').mkdir()
  lines = [f'{split}_{k:05}.jpg {k}' for split in ('train', 'test') for k in range(1, 8)]
  (root / 'EmoLabel' / name).write_text('\n'.join(lines))
  with pytest.raises(UserError, match=r'the originals are there: `mimic align .*` makes aligned ones') as e:
    data.build('rafdb', str(root), 'train', {})
  monkeypatch.setitem(align.DETECTORS, 'mtcnn', lambda: lambda image: [])
  monkeypatch.setitem(align.NAMES, 'mtcnn', lambda: 'blind')
  command = shlex.split(str(e.value).split('`')[1])
  align.main([*command[2:], '--size=32', '--workers=0'])
  for split in ('train', 'test'):
    s = data.build('rafdb', str(root), split, {})
    assert [(s.id(k), s.label(k)) for k in range(7)] == [(f'{split}_{k + 1:05}', k) for k in range(7)]
    assert s[0]['image'].shape == (32, 32, 3)
    record = s.record()
    assert record['align']['align'] == 'five_point(arcface)'
    assert 'of_release' not in record['align']
    assert not any('name' in w for w in record['warnings'])


# 23, 24: sets a folder or two below, and a test split by another name
@pytest.mark.parametrize('inside', ['basic', 'RAF-DB/basic', 'DATASET', 'a/b'])
def test_a_set_below_the_folder_that_was_given_is_named(inside, tmp_path):
  for k in range(1, 8):
    picture(tmp_path / inside / 'Image' / 'aligned' / f'train_{k:05}_aligned.jpg')
  (tmp_path / inside / 'EmoLabel').mkdir(parents=True)
  lines = [f'train_{k:05}.jpg {k}' for k in range(1, 8)]
  (tmp_path / inside / 'EmoLabel' / 'list_patition_label.txt').write_text('\n'.join(lines))
  (tmp_path / inside / 'FER2013Train').mkdir()
  (tmp_path / inside / 'FER2013Train' / 'label.csv').write_text('')
  for source in ('rafdb', 'ferplus'):
    with pytest.raises(UserError, match=rf"did you mean '{tmp_path}/{inside}'\?"):
      data.build(source, str(tmp_path), 'train', {})
  assert len(data.build('rafdb', str(tmp_path / inside), 'train', {})) == 7


@pytest.mark.parametrize('name', ['valid', 'val', 'validation'])
def test_rafdbs_test_split_is_known_by_its_files_names(name, tmp_path):
  for k in range(1, 8):
    picture(tmp_path / 'train' / str(k) / f'train_{k:05}_aligned.jpg')
    picture(tmp_path / name / str(k) / f'test_{k:05}_aligned.jpg')
  record = data.build('rafdb', str(tmp_path), 'test', {}).record()
  assert (record['count'], record['label_file']) == (7, name)
  assert any('is read as the test split' in w for w in record['warnings'])
  for k in range(1, 8):  # no test pictures: no test split
    os.rename(
      tmp_path / name / str(k) / f'test_{k:05}_aligned.jpg',
      tmp_path / name / str(k) / f'train_9{k:04}_aligned.jpg',
    )
  with pytest.raises(UserError, match="no split 'test'"):
    data.build('rafdb', str(tmp_path), 'test', {})


# 20, 21: fields as they are typed
@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (['finetune_ferplus:small', '--config.data.root=FERPLUS'], r'--config\.data\.general is empty'),
    (['finetune_ferplus'], r'--config\.data\.root is empty'),
    (['finetune_folder:small'], r'--config\.data\.root is empty'),
    (['finetune_affectnet', '--config.finetune.data.classes=8', '--config.data.root=/nowhere'], r"--config\.finetune\.data\.root '/nowhere' is not a folder|--config\.data\.root"),
  ],
)  # fmt: skip
def test_a_field_is_named_as_it_is_typed(flags, said, tmp_path):
  picture(tmp_path / 'FER2013Train' / 'a.png', (48, 48))
  (tmp_path / 'FER2013Train' / 'label.csv').write_text('a.png,"(0, 0, 48, 48)",10,0,0,0,0,0,0,0,0,0')
  flags = [flag.replace('FERPLUS', str(tmp_path)) for flag in flags]
  config = config_lib.parse(['main', '--config', *flags]).config
  name = config_lib.stages(config)[0]
  with pytest.raises(UserError, match=said):
    stage_lib.Stage(config, name, workdir.epath.Path(tmp_path), sharding.make_mesh())


# 30: so few pictures say little
@pytest.mark.parametrize(('right', 'count'), [(0, 3), (3, 3), (0, 1), (5, 5), (0, 40)])
def test_an_interval_without_a_spread_admits_what_is_not_known(right, count):
  labels = np.arange(count) % 2
  logits = np.eye(2)[labels if right else 1 - labels]
  found = uncertainty.intervals(labels, logits, ('a', 'b'), samples=200)
  for name in uncertainty.SCORES:
    assert found[name]['high'] - found[name]['low'] > 0.05
  want = uncertainty.wilson(count if right else 0, count)
  assert (found['accuracy']['low'], found['accuracy']['high']) == pytest.approx(want)


# 57: random numbers of another kind
def test_random_numbers_of_another_kind_are_refused():
  now = stage_lib.random_numbers()
  stage_lib.check_same_random({'random': now})
  stage_lib.check_same_random({})  # of an earlier version
  with jax.default_prng_impl('rbg'), pytest.raises(UserError, match=f"'rbg'; expected '{now}'"):
    stage_lib.check_same_random({'random': now})


# 60: lists as they are published
def test_a_list_may_repeat_lines_and_put_the_class_in_front(tmp_path):
  for name in ('fer0001', 'fer0002', 'test_0003_aligned'):
    picture(tmp_path / 'test' / 'a' / f'{name}.png')
  s = folder.build(str(tmp_path), 'test', {})
  (tmp_path / 'list.txt').write_text('1_fer0001.png\ntest_0003.jpg 4\ntest_0003.jpg 4\n7_fer0002.png\n')
  part = selection.listed({'test': s}, str(tmp_path / 'list.txt'))['test']
  assert len(part) == 3
  assert part.record()['subset'] == {'list': 'list.txt', 'count': 3, 'of': 3, 'repeated_lines': 1}


# 64: a platform that is not there
@pytest.mark.parametrize('platform', ['cuda', 'rocm', 'tpu', 'nonsense'])
def test_a_platform_that_is_not_there_is_one_line(platform):
  env = {**os.environ, 'JAX_PLATFORMS': platform}
  done = subprocess.run(
    [sys.executable, '-c', 'from mimic_jax.runtime import sharding\nsharding.make_mesh()'], capture_output=True, text=True, env=env, cwd=ROOT
  )  # fmt: skip
  assert 'UserError: JAX finds no device' in done.stderr
  assert platform in done.stderr.splitlines()[-1]


# 66: a comma in the name of one source's folder
def test_a_comma_splits_the_folders_of_several_sources_only():
  assert data.first('rafdb', '/data/a,b') == '/data/a,b'
  assert data.first('rafdb,folder', '/data/a,/data/b') == '/data/a'


# 12: the epsilon that a file states
def test_an_epsilon_that_a_file_states_must_be_the_models(tmp_path):
  found = weights.Weights({'encoder/x': np.ones(3)}, 'file', 'kind', facts={'layer_norm_eps': 1e-12})
  target = {'encoder/x': np.ones(3)}
  with pytest.raises(
    UserError, match=r'says layer_norm_eps 1e-12; .*--config.model.layer_norm_eps=1e-12 makes them so'
  ):
    weights.fit(found, target, lambda path: 'needed', 'config.init', layer_norm_eps=1e-6)
  fitted, _ = weights.fit(found, target, lambda path: 'needed', 'config.init', layer_norm_eps=1e-12)
  assert set(fitted) == set(target)
  model = small.model_section(layer_norm_eps=1e-12)
  encoder = models.encoder_config(model).create(nnx.Rngs(0))
  assert encoder.norm.epsilon == encoder.blocks.norm1.epsilon == 1e-12


# 54: pixels that weights were made for
@pytest.mark.parametrize(
  'said',
  [
    {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)},
    {'mean': (0.0, 0.0, 0.0)},
    {'std': (0.25, 0.5, 1.0)},
    {'mean': (0.48145466, 0.4578275, 0.40821073), 'std': (0.26862954, 0.26130258, 0.27577711)},
    {},
  ],
)
def test_training_says_for_which_pixels_its_first_weights_were_made(said, tmp_path, rng):
  state = hugging_face(timm_encoder(rng, dim=16, grid=2))
  save_file(state, tmp_path / 'model.safetensors')
  (tmp_path / 'preprocessor_config.json').write_text(
    json.dumps({f'image_{key}': value for key, value in said.items()})
  )
  changes = {}
  for notes in (len(said), 0):
    section = small.mimic_stage(**changes)
    config = FrozenConfigDict(small.run_config(finetune=section))
    stage = stage_lib.Stage(
      config, 'finetune', workdir.epath.Path(tmp_path / 'run'), sharding.make_mesh(), str(tmp_path)
    )
    stage.prepare()
    account = stage.initial_state()[1]
    told = [
      line
      for line in log.introduction(stage, {'origin': account}, 0).splitlines()
      if 'its config says' in line
    ]
    assert len(told) == notes
    for line, (key, value) in zip(told, said.items()):
      assert f'its config says {key} {value}, here it is' in line
      name, typed = re.search(r"'--config\.finetune\.(\S+)=\((\S+)\)' makes them so", line).groups()
      changes[name] = tuple(map(float, typed.split(',')))
  assert changes == {f'augment.{key}': value for key, value in said.items()}


# 54 and its kind: what a file says of its training is said when it is trained further
@pytest.mark.parametrize(
  ('args', 'own', 'told'), [(True, True, 0), (False, True, 1), (True, False, 1), (None, False, 0)]
)
@pytest.mark.parametrize('whole', [True, False])
def test_training_says_for_which_targets_a_decoder_was_made(args, own, told, whole, tmp_path, rng):
  torch = pytest.importorskip('torch')
  state = timm_encoder(rng, dim=16, grid=2) | (mae_decoder(rng, dim=16, grid=2) if whole else {})
  held = {'model': {k: torch.from_numpy(v) for k, v in state.items()}}
  if args is not None:
    held['args'] = argparse.Namespace(norm_pix_loss=args)
  torch.save(held, tmp_path / 'w.pth')
  config = FrozenConfigDict(small.run_config(pretrain=small.mae_stage(**{'mae.norm_pix': own})))
  stage = stage_lib.Stage(
    config, 'pretrain', workdir.epath.Path(tmp_path / 'run'), sharding.make_mesh(), str(tmp_path / 'w.pth')
  )
  stage.prepare()
  notes = stage.initial_state()[1]['notes']
  assert (
    len([note for note in notes if f'trained with norm_pix {args}, here mae.norm_pix is {own}' in note])
    == told * whole
  )


# 7: a corrupt first record; 9: what is made once
def test_labels_of_rows_that_were_not_read_ask_nothing_of_the_source():
  class Corrupt(Numbers):
    def label(self, i):
      if i == 0:
        raise sources.BadImage('/set', 'record 0 is corrupt')
      return super().label(i)

    def __getitem__(self, i):
      if i == 0:
        raise sources.BadImage('/set', 'record 0 is corrupt')
      return super().__getitem__(i)

  found = list(evaluate(Corrupt(5), 4, on_bad_image='skip'))
  assert [b['mask'].tolist() for b in found] == [[False, True, True, True], [True, False, False, False]]
  assert found[0]['label'][0] == -1
  for batch in take(train(Corrupt(5), 2, on_bad_image='skip'), 5):
    assert (batch['index'] > 0).all()


def test_what_threads_ask_for_at_once_is_made_once():
  class Slow:
    made = 0

    @tfds_set._once
    def value(self):
      time.sleep(0.05)
      type(self).made += 1
      return object()

  slow = Slow()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert len(set(map(id, pool.map(lambda _: slow.value, range(16))))) == 1
  assert Slow.made == 1


# 68: names with blanks
def test_a_name_with_blanks_stands_in_quotes(tmp_path):
  for name in ('a b', 'c, d', 'e'):
    picture(tmp_path / 'test' / 'k' / f'{name}.png')
  s = folder.build(str(tmp_path), 'test', {})
  (tmp_path / 'list.txt').write_text('"a b.png" 3\n  "test/k/c, d.png"\n"e"\n# e\n')
  assert len(selection.listed({'test': s}, str(tmp_path / 'list.txt'))['test']) == 3


# 73: a checkout of another user
def test_the_revision_is_read_of_a_checkout_whoever_owns_it(monkeypatch):
  asked = []
  monkeypatch.setattr(
    workdir.subprocess,
    'run',
    lambda args, **_: asked.append(args) or subprocess.CompletedProcess(args, 0, 'x', ''),
  )
  workdir.environment()
  of_git = [args for args in asked if args[0] == 'git']  # platform asks for more the first time
  assert of_git
  assert all('safe.directory=*' in args for args in of_git)


# 70: pictures of AffectNet by another ending, deeper, or in class folders
@pytest.mark.parametrize(
  'how', ['{k}.png', '{k}.JPG', 'deeper/{k}.jpg', '{label}/{k}.jpeg', '{label}/more/{k}.webp']
)
def test_affectnets_pictures_are_found_by_their_number(how, tmp_path):
  base = tmp_path / 'train_set'
  (base / 'annotations').mkdir(parents=True)
  for k in range(9):
    np.save(base / 'annotations' / f'{k}_exp.npy', str(k % 7))
    picture(base / 'images' / how.format(k=k, label=k % 7), (16, 16))
  s = data.build('affectnet', str(tmp_path), 'train', {})
  assert sorted(s.label(i) for i in range(len(s))) == sorted(k % 7 for k in range(9))
  assert all(s[i]['image'].shape == (16, 16, 3) for i in range(9))
  assert not any('not read' in w for w in s.record()['warnings'])


# 60, 69, 70 and their kind: RAF-DB and FERPlus as they are passed around
@pytest.mark.parametrize(
  ('line', 'file'),
  [
    ('{id}.jpg {c}', '{id}_aligned.jpg'),
    ('{id}_aligned.jpg {c}', '{id}_aligned.jpg'),
    ('{id}.jpg,{c}', '{id}_aligned.JPG'),
    ('{id}_aligned.png,  {c}', '{id}_aligned.png'),
    ('{id}.jpg\t{c}', '{id}.jpg'),
    ('{id}.jpg {c}\r', '{id}.jpeg'),
  ],
)
def test_rafdbs_list_and_pictures_are_known_by_their_numbers(line, file, tmp_path):
  (tmp_path / 'EmoLabel').mkdir()
  ids = [(f'{split}_{k:05}', k) for split in ('train', 'test') for k in range(1, 8)]
  (tmp_path / 'EmoLabel' / 'list_patition_label.txt').write_bytes(
    '\n'.join(line.format(id=i, c=c) for i, c in ids).encode()
  )
  for i, _ in ids:
    picture(tmp_path / 'Image' / 'aligned' / file.format(id=i), (30, 30))
  for split in ('train', 'test'):
    s = data.build('rafdb', str(tmp_path), split, {})
    assert [(s.id(k), s.label(k)) for k in range(7)] == [(f'{split}_{k + 1:05}', k) for k in range(7)]
    assert s[3]['image'].shape == (30, 30, 3)
    assert not any('name' in w for w in s.record()['warnings'])


def test_of_two_pictures_of_a_number_the_aligned_one_is_taken_and_the_other_is_said(tmp_path):
  (tmp_path / 'EmoLabel').mkdir()
  (tmp_path / 'EmoLabel' / 'list_patition_label.txt').write_text(
    '\n'.join(f'train_{k:05}.jpg {k}' for k in range(1, 8))
  )
  for k in range(1, 8):
    picture(tmp_path / 'Image' / 'aligned' / f'train_{k:05}_aligned.jpg', (30, 30))
    picture(tmp_path / 'Image' / 'aligned' / f'train_{k:05}.jpg', (40, 40))
  s = data.build('rafdb', str(tmp_path), 'train', {})
  assert s[0]['image'].shape == (30, 30, 3)
  assert any('train_00001.jpg' in w for w in s.record()['warnings'])


@pytest.mark.parametrize('how', ['plain', 'header', 'blanks', 'floats', 'all'])
def test_ferplus_votes_are_read_as_tables_are_saved_again(how, tmp_path):
  rows = (
    ['Image name,box,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF']
    if how in ('header', 'all')
    else []
  )
  for k in range(8):
    picture(tmp_path / 'FER2013Train' / f'fer{k:07}.png', (48, 48))
    votes = ['10' if j == k else '0' for j in range(10)]
    votes = [f'{v}.0' for v in votes] if how in ('floats', 'all') else votes
    rows.append(
      (', ' if how in ('blanks', 'all') else ',').join([f'fer{k:07}.png', '"(0, 0, 48, 48)"', *votes])
    )
  (tmp_path / 'FER2013Train' / 'label.csv').write_text('\n'.join(rows))
  s = data.build('ferplus', str(tmp_path), 'train', {})
  assert [
    (s.id(k)[-4:], int(np.argmax(s.label(k)) if np.ndim(s.label(k)) else s.label(k))) for k in range(8)
  ] == [(s.id(k)[-4:], k) for k in range(8)]


# 69: a table that pandas wrote again
@pytest.mark.parametrize('extra', [('', '7'), ('Unnamed: 0', '12'), ('more', 'x')])
def test_a_table_with_a_column_more_is_read(extra, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  header = (
    'subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal'
  )
  rows = [f'{extra[0]},{header}']
  for k in range(7):
    rows.append(f'{extra[1]},1/{k}.png,0,0,9,7,,{k},0.5,-0.5')
    picture(tmp_path / 'Manually_Annotated_Images' / '1' / f'{k}.png')
  (tmp_path / 'training.csv').write_text('\n'.join(rows))
  s = data.build('affectnet', str(tmp_path), 'train', {})
  assert [s.label(i) for i in range(7)] == list(range(7))


# 27, 28, 74: what a weight file is, said first
@pytest.mark.parametrize(
  ('name', 'who'),
  [
    ('visual.transformer.resblocks.0.ln_1.weight', 'CLIP'),
    ('vision_model.encoder.layers.0.layer_norm1.weight', 'CLIP or SigLIP'),
    ('backbone.layers.0.ln1.weight', 'mmpretrain'),
    ('layers.0.blocks.0.attn.qkv.weight', 'Swin'),
    ('stages.0.1.dwconv.weight', 'ConvNeXt'),
  ],
)
def test_an_encoder_of_another_kind_is_refused_by_its_name(name, who, tmp_path):
  save_file({name: np.zeros((4, 4), np.float32)}, tmp_path / 'w.safetensors')
  with pytest.raises(UserError, match=f'as {who}.* has it; expected the names of a ViT'):
    weights.read(str(tmp_path / 'w.safetensors'), 'config.init')


@pytest.mark.parametrize(
  ('kind', 'sizes', 'config'),
  [
    ('timm', {'dim': 192, 'depth': 12, 'patch': 16, 'grid': 14}, {}),
    ('timm', {'dim': 24, 'depth': 3, 'patch': 4, 'grid': 5}, {}),
    ('timm', {'dim': 40, 'depth': 1, 'patch': 8, 'grid': 3, 'hidden': 100}, {}),
    ('hugging_face', {'dim': 40, 'depth': 2, 'patch': 8, 'grid': 2}, {'num_attention_heads': 5}),
    ('hugging_face', {'dim': 192, 'depth': 12, 'patch': 16, 'grid': 2}, {'num_attention_heads': 6}),
    (
      'hugging_face',
      {'dim': 24, 'depth': 2, 'patch': 8, 'grid': 2},
      {'layer_norm_eps': 1e-12, 'num_attention_heads': 1},
    ),
    ('moco', {'dim': 384, 'depth': 12, 'patch': 16, 'grid': 3}, {}),
    ('dinov2', {'dim': 384, 'depth': 2, 'patch': 14, 'grid': 3}, {}),
    ('dinov2', {'dim': 24, 'depth': 2, 'patch': 14, 'grid': 3}, {}),
    ('registers', {'dim': 24, 'depth': 2, 'patch': 14, 'grid': 2}, {}),
  ],
)
def test_the_flags_that_a_refusal_names_make_a_model_that_fits(kind, sizes, config, tmp_path, rng):
  sizes = dict(sizes)
  hidden = sizes.pop('hidden', 0)
  state = timm_encoder(rng, **sizes)
  if hidden:
    state |= timm_blocks(rng, 'blocks.', sizes['dim'], sizes['depth'], hidden)
  if kind in ('dinov2', 'registers'):
    ones = np.ones(sizes['dim'], np.float32)
    state |= {f'blocks.{i}.ls{k}.gamma': ones for i in range(sizes['depth']) for k in (1, 2)}
    state |= {'mask_token': ones[None]} | (
      {'register_tokens': np.ones((1, 4, sizes['dim']), np.float32)} if kind == 'registers' else {}
    )
  if kind == 'hugging_face':
    state = hugging_face(state)
  if kind == 'moco':
    state = {f'module.base_encoder.{k}': v for k, v in state.items()}
  save_file(state, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text(json.dumps(config))
  read = weights.read(str(tmp_path), 'config.init')

  def take(*flags):
    command = config_lib.parse(['main', '--config=finetune_folder', '--config.model.scan=True', *flags])
    objective = objectives.make(command.config.finetune, command.config.model, ('a', 'b'), 'objective')
    _, params, rest = models.split(nnx.eval_shape(objective.init, jax.random.key(0)), objective.trainable)
    target = {**checkpoint.flatten(params), **checkpoint.flatten(rest)}
    c = objective.config
    return weights.fit(
      read, target, objective.initial, 'config.init', heads=c.heads, layer_norm_eps=c.layer_norm_eps
    )

  with pytest.raises(UserError, match='makes') as e:
    take('--config.model.preset=vit_b16')
  flags = re.search(r'\((--config[^()]*) makes a model of its sizes\)', str(e.value))[1].split()
  if not any('heads' in flag for flag in flags):  # no tensor shows them
    flags.append(f'--config.model.heads={sizes["dim"] // 8}')
  account = take(*flags)[1]
  assert not [name for name in account['fresh'] if name.startswith('encoder/')]
  assert account['resized'] == []
  assert not [note for note in account['notes'] if 'heads' in note]


@pytest.mark.parametrize(
  ('facts', 'flags'),
  [
    ({'preset': 'vit_l16', 'dim': 1024, 'depth': 24, 'image_size': 224}, '--config.model.preset=vit_l16 --config.model.image_size=224 --config.model.dim=1024 --config.model.depth=24'),
    ({'dim': 48, 'depth': 3, 'patch_size': 4, 'image_size': 32}, '--config.model.image_size=32 --config.model.patch_size=4 --config.model.dim=48 --config.model.depth=3'),
  ],
)  # fmt: skip
def test_weights_of_other_sizes_say_what_they_are_and_which_flags_fit(facts, flags):
  found = weights.Weights({'encoder/x': np.ones(3)}, 'file', 'kind', facts=facts)
  with pytest.raises(
    UserError, match=rf'^config.init: file is of another architecture, .*dim {facts["dim"]}.*\({flags} makes'
  ):
    weights.fit(found, {'encoder/x': np.ones(4)}, lambda path: 'needed', 'config.init')
