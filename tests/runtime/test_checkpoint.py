"""Checkpoints: what is restored is what was written, or it is said that it is not."""

import pathlib
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from mimic_jax.runtime import checkpoint, sharding
from mimic_jax.runtime.errors import AgreedError, Preempted, UserError

FLIPS = 24


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A stage's folder with one checkpoint, its state, and what to restore it as."""
  folder = epath.Path(tmp_path_factory.mktemp('stage'))
  rng = np.random.default_rng(0)
  mesh = sharding.make_mesh(-1, 2)
  shapes = {'encoder': {'w': (64, 48), 'b': (48,)}, 'head': {'w': (48, 7)}}
  state = {
    'step': jnp.int32(5),
    'params': jax.tree.map(
      lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    ),
  }
  state = jax.device_put(state, sharding.replicated(mesh))
  with checkpoint.opened(folder, 2) as checkpoints:
    checkpoints.save(5, state, {'stage': 's', 'config': {'a': 1.5}, 'data': 'x', 'seconds': 0.1})
  like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
  return folder, jax.device_get(state), like


def test_what_is_restored_is_what_was_written(saved):
  folder, state, like = saved
  with checkpoint.opened(folder, 2) as checkpoints:
    found, meta = checkpoints.restore(5, like)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), state)
  assert (meta['config'], meta['seconds']) == ({'a': 1.5}, 0.1)
  arrays = checkpoint.read_arrays(folder / checkpoint.FOLDER, 5, ('params/encoder',))
  np.testing.assert_array_equal(arrays['params/encoder/w'], state['params']['encoder']['w'])
  assert set(arrays) == {'params/encoder/w', 'params/encoder/b'}


def test_meta_data_are_those_of_the_moment_of_saving_although_they_are_written_later(saved, tmp_path):
  _, state, like = saved
  pending = []  # as the log's, which gets the next step's figures while the checkpoint is being written
  with checkpoint.opened(epath.Path(tmp_path), 8) as checkpoints:
    for step in range(1, 6):
      checkpoints.save(step, jax.device_put(state), {'stage': 's', 'config': {}, 'pending': pending})
      pending.append(step)
    checkpoints.wait()
    assert [checkpoints.restore(step, like)[1]['pending'] for step in range(1, 6)] == [
      list(range(1, step)) for step in range(1, 6)
    ]


def restored(folder, like) -> tuple[tuple | None, str]:
  """Returns what a run would go on from, and the error that says that there is nothing whole."""
  try:
    with checkpoint.opened(epath.Path(folder), 2) as checkpoints:
      return checkpoints.restore_newest(like, print), ''
  except checkpoint.Damaged as e:
    return None, str(e)


def test_a_flipped_byte_anywhere_is_harmless_or_detected_and_never_restored(saved, tmp_path, rng):
  folder, state, like = saved
  shutil.copytree(folder, tmp_path / 's')
  place = tmp_path / 's' / checkpoint.FOLDER / '5'
  files = [p for p in sorted(place.rglob('*')) if p.is_file() and p.stat().st_size]
  sizes = np.array([p.stat().st_size for p in files])
  outcomes = []
  for k in range(FLIPS):
    # half of the flips in the largest files, where the arrays are; half in any file, however small
    file = files[rng.choice(len(files), p=sizes / sizes.sum() if k % 2 else None)]
    whole = file.read_bytes()
    at = int(rng.integers(len(whole)))
    file.write_bytes(whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :])
    found, said = restored(tmp_path / 's', like)
    assert '\n' not in said
    outcomes.append('detected' if said else 'harmless')
    if not said:
      assert found is not None, file
      jax.tree.map(np.testing.assert_array_equal, jax.device_get(found[1]), state)
    file.write_bytes(whole)
  assert outcomes.count('detected') >= FLIPS // 4  # the flips in the arrays, at the least


def test_altered_meta_data_are_detected(saved, tmp_path):
  folder, *_ = saved
  shutil.copytree(folder, tmp_path / 's')
  place = tmp_path / 's' / checkpoint.FOLDER
  (file,) = (p for p in (place / '5' / 'meta').iterdir() if b'1.5' in p.read_bytes())
  file.write_text(file.read_text().replace('1.5', '1.6'))
  with pytest.raises(checkpoint.Damaged, match='its meta data are not those that were written'):
    checkpoint.read_meta(epath.Path(place), 5)


def test_a_checkpoint_of_before_there_were_checksums_is_read(saved, tmp_path, monkeypatch):
  _, state, like = saved
  whole = checkpoint.Checkpoints.save
  meta = {'stage': 's', 'config': {}, 'data': 'x'}
  monkeypatch.setattr(checkpoint, '_digest', lambda meta: meta.pop('checksums') and None)
  monkeypatch.setattr(checkpoint, '_OWN', 'nothing')
  with checkpoint.opened(epath.Path(tmp_path), 2) as checkpoints:
    whole(checkpoints, 5, jax.device_put(state, jax.tree.map(lambda x: x.sharding, like)), meta)
  monkeypatch.undo()
  with checkpoint.opened(epath.Path(tmp_path), 2) as checkpoints:
    step, found, meta = checkpoints.restore_newest(like, print)
  assert step == 5
  assert 'checksums' not in meta
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), state)
  assert len(checkpoint.read_arrays(epath.Path(tmp_path) / checkpoint.FOLDER, 5, ('params',))) == 3


@pytest.mark.parametrize(
  'error',
  [
    PermissionError(13, 'Permission denied'),
    ValueError('UNAVAILABLE: Error reading from the bucket'),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.'),
  ],
)
def test_what_says_nothing_of_a_checkpoint_makes_no_run_pass_over_it(error, saved, monkeypatch):
  folder, _, like = saved

  def fails(*_, **__):
    raise error

  with checkpoint.opened(folder, 2) as checkpoints:
    monkeypatch.setattr(checkpoints._orbax, 'restore', fails)
    with pytest.raises(UserError, match=r"checkpoints/5 can't be read now") as e:
      checkpoints.restore_newest(like, print)
  assert not isinstance(e.value, checkpoint.Damaged)
  assert (folder / checkpoint.FOLDER / '5').is_dir()


def test_a_checkpoint_that_can_not_be_written_is_one_line_and_the_one_before_is_whole(saved, monkeypatch):
  folder, state, like = saved
  half = folder / checkpoint.FOLDER / '6.orbax-checkpoint-tmp-1'

  def fails(*_, **__):
    (half / 'state').mkdir(parents=True)
    raise ValueError('Error writing local file "/x/y": No space left on device [os_error_code=28]')

  checkpoints = checkpoint.Checkpoints(folder, 2)
  monkeypatch.setattr(checkpoints._orbax, 'save', fails)
  with pytest.raises(UserError, match=r'can not be written \(No space left on device\).*are whole: 5') as e:
    checkpoints.save(6, jax.tree.map(jnp.asarray, state), {'config': {}})
  assert '\n' not in str(e.value)
  assert not half.exists()
  checkpoints.close()
  with checkpoint.opened(folder, 2) as again:
    assert again.restore_newest(like, print)[0] == 5


def _tear(folder: pathlib.Path, how: str) -> None:
  largest = max((folder / 'state').rglob('d/*'), key=lambda p: p.stat().st_size)
  raw = bytearray(largest.read_bytes())
  if how == 'flipped':
    raw[len(raw) // 2] ^= 4
    largest.write_bytes(bytes(raw))
  elif how == 'truncated':
    largest.write_bytes(bytes(raw[: len(raw) // 2]))
  elif how == 'empty':
    largest.write_bytes(b'')
  elif how == 'no manifest':
    for manifest in (folder / 'state').rglob('manifest.ocdbt'):
      manifest.unlink()
  else:
    shutil.rmtree(folder / 'meta')


def _written(folder, state, *steps: int, ends: Exception | None, finished: Callable[[], None] = lambda: None):
  """Writes checkpoints as a run does that ends so; `finished` is called when the last is on disk."""
  with checkpoint.opened(epath.Path(folder), 2) as checkpoints:
    for step in steps:
      checkpoints.save(step, jax.tree.map(jnp.asarray, state), {'config': {}})
    wait = checkpoints._orbax.wait_until_finished
    checkpoints._orbax.wait_until_finished = lambda: (wait(), finished())
    if ends:
      raise ends
    checkpoints.confirm()


# found by use, 50
@pytest.mark.parametrize('how', ['flipped', 'truncated', 'empty', 'no manifest', 'no meta'])
@pytest.mark.parametrize('ends', [Preempted('all is saved'), AgreedError('bad numbers'), None])
def test_what_is_called_saved_has_been_read_back(how, ends, saved, tmp_path):
  _, state, like = saved
  _written(tmp_path, state, 5, ends=None)
  torn = []

  def tear():
    if not torn:
      torn.append(_tear(tmp_path / checkpoint.FOLDER / '6', how))

  told = r'/6 is damaged .* though it was written only now\. Those before it: 5;'
  with pytest.raises(UserError, match=told) as e:
    _written(tmp_path, state, 6, ends=ends, finished=tear)
  assert torn
  assert '\n' not in str(e.value)
  with checkpoint.opened(epath.Path(tmp_path), 2) as again:
    assert again.restore_newest(like, print)[0] == 5


def test_a_checkpoint_is_read_back_once_and_only_by_who_wrote_it(saved, tmp_path, monkeypatch):
  read = []
  monkeypatch.setattr(checkpoint, 'read_arrays', lambda folder, step, wanted: read.append(step))
  for steps in ((5,), (5, 6), ()):
    with pytest.raises(Preempted):
      _written(tmp_path, saved[1], *steps, ends=Preempted('all is saved'))
    _written(tmp_path, saved[1], *steps, ends=None)
  assert read == [5, 6]
