"""Supervised pre-training: DeiT's recipe over fine-tuning's objective, and what fine-tuning takes of a run with it."""

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from mimic_jax import objectives
from mimic_jax.runtime import sharding
from mimic_jax.training import loop, results, workdir
from mimic_jax.training import stage as stage_lib
from tests import small


def small_stage() -> ConfigDict:
  """Returns two steps of 8 drawn faces by the recipe."""
  s = objectives.defaults('supervised')
  like = small.mimic_stage(steps=2)
  s.update({k: like[k] for k in ('data', 'eval', 'batch_images', 'steps')})
  s.optim.warmup_epochs = 0.0
  return s


def test_the_recipe_is_deits():
  s = objectives.defaults('supervised')
  assert s.optim.blr * s.batch_images / 256 == pytest.approx(5e-4 * 1024 / 512)
  assert (s.epochs, s.drop_path, s.ce.smoothing, s.optim.weight_decay) == (300.0, 0.1, 0.1, 0.05)
  mix = s.mix
  assert (mix.mixup_alpha, mix.cutmix_alpha, mix.switch_probability, mix.probability) == (0.8, 1.0, 0.5, 1.0)
  a = s.augment
  assert (a.rand_ops, a.rand_magnitude, a.rand_std, a.erasing) == (2, 9.0, 0.5, 0.25)


@pytest.mark.processes
def test_fine_tuning_takes_the_encoder_of_a_run_and_neither_head_nor_norm(tmp_path, monkeypatch):
  monkeypatch.setattr(results, 'show', lambda *_, **__: None)
  monkeypatch.setattr(results, '_draw', lambda *_: None)
  monkeypatch.setattr(results.page, 'write', lambda *_, **__: None)
  mesh, folder = sharding.make_mesh(-1, 1, jax.devices()[:1]), epath.Path(tmp_path)
  config = FrozenConfigDict(small.run_config(pretrain=small_stage()))
  workdir.begin(folder, config)
  stage = stage_lib.Stage(config, 'pretrain', folder, mesh)
  loop.run_stage(stage)
  config = FrozenConfigDict(small.run_config(finetune=small.mimic_stage()))
  stage = stage_lib.Stage(config, 'finetune', folder / 'next', mesh, str(tmp_path))
  stage.prepare()
  state, account = stage.initial_state()
  assert {name.split('/')[0] for name in account['loaded']} == {'encoder'}
  assert {name.split('/')[0] for name in account['fresh']} == {'classifier', 'fc_norm', 'projection'}
  first = stage.program.init(stage.init_key)['params']['encoder']
  moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), state['params']['encoder'], first)
  assert moved['blocks']['mlp']['fc1']['kernel']
