"""Configs: found by name, overridden, checked; what is wrong is one line that names the field."""

import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from mimic_jax import config as config_lib
from mimic_jax import defaults, objectives
from mimic_jax.objectives import masked_autoencoding as mae
from mimic_jax.objectives import mimic
from mimic_jax.runtime.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


def parse(*args: str) -> config_lib.Command:
  return config_lib.parse(['main', *args])


ALL = [
  'quickstart',
  'quickstart:minute',
  'pretrain_imagenet1k',
  'pretrain_imagenet1k:vitl16',
  'pretrain_moco_v3',
  'pretrain_moco_v3:vits16,folder',
  'pretrain_moco_v3:small,folder',
  'pretrain_folder:small',
  'pretrain_local_mim',
  'pretrain_local_mim:small,folder',
  'pretrain_sslfer',
  'pretrain_sslfer:vitb16,no_time,swap',
  'pretrain_sslfer:small,no_hard',
  'amcl',
  'amcl:folder,random_masks',
  'amcl:simclr',
  'pretrain_supervised',
  'pretrain_supervised:small,folder',
  'finetune_folder:small',
  'finetune_folder:vits16,csv',
  'finetune_folder:init,scl',
  'finetune_ferplus:vitb16',
  'finetune_ferplus:vitl16',
  'finetune_ferplus:small',
  *(f'finetune_ferplus:small,{m}' for m in mimic.METHODS),
  'finetune_ferplus:ours',
  'finetune_ferplus:ours,ce',
  'finetune_rafdb',
  'finetune_rafdb:vitl16,scl',
  'finetune_affectnet',
  'finetune_affectnet:vitl16,classes8,ce',
  'study:tiny,mae,pretrain',
  'study:small,ferplus,scratch,ce',
  'study:paper,rafdb,mae,scl,large',
  'finetune_scn',
  'finetune_scn:init,csv',
  'finetune_regression',
  'finetune_regression:resnet18,pose',
  'finetune_regression:init,affectnet',
  'finetune_regression:small,drawn',
  'finetune_regression:small,drawn_glasses',
  'hmtl',
  'hmtl:vitb16,affectnet,inpaint,fifth,strong',
  'hmtl:small,drawn,none',
  'hmtl:small,drawn_pose',
  'hmtl:resnet18,pose,inpaint,flips',
  'linear_probe',
  'linear_probe:init,ferplus',
]


@pytest.mark.parametrize('name', ALL)
def test_every_config_parses_and_passes_its_own_checks(name):
  command = parse(f'--config={name}')
  assert config_lib.stages(command.config)
  assert command.workdir == f'runs/{command.config.name}'.replace(',', '_')


def test_every_config_file_is_among_those_tested():
  assert {n.partition(':')[0] for n in ALL} == set(config_lib.config_names())


@pytest.mark.parametrize(
  'given', ['quickstart', 'quickstart.py', 'configs/quickstart.py', str(ROOT / 'configs/quickstart.py')]
)
def test_a_config_is_found_by_path_and_by_name_from_any_folder(given, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert parse('--config', given).config.name == 'quickstart'


def test_overrides_reach_the_field_and_what_refers_to_it():
  config = parse(
    '--config=finetune_ferplus:vitb16',
    '--config.data.root=/d',
    '--config.init=w',
    '--config.finetune.optim.lr=3e-4',
  ).config
  assert config.finetune.data.root == '/d'
  assert config.finetune.init == 'w'
  assert config.finetune.optim.lr == 3e-4


def test_a_field_may_stand_before_the_config():
  assert parse('--config.seed=3', '--config', 'quickstart').config.seed == 3


def test_the_small_configs_pretraining_roots_follow_both_folders():
  config = parse(
    '--config=finetune_ferplus:small', '--config.data.root=/f', '--config.data.general=/g'
  ).config
  assert config.pretrain.data.root == '/f,/g'


@pytest.mark.parametrize('section', [mimic.Objective.defaults, mae.Objective.defaults, defaults.base])
def test_no_field_is_none_which_the_command_line_could_not_override(section):
  assert [name for name, value in config_lib.fields(section()) if value is None] == []


@pytest.mark.parametrize(
  'config', ['finetune_ferplus:vitb16', 'finetune_ferplus:small', 'finetune_folder:small']
)
@pytest.mark.parametrize('method', mimic.METHODS)
def test_a_method_behind_a_config_is_that_method(config, method):
  stage = dict(config_lib.fields(parse(f'--config={config},{method}').config.finetune))
  for field, value in mimic.METHODS[method].items():
    assert stage[field] == value, field


@pytest.mark.parametrize(
  ('lines', 'words'),
  [
    ('c.finetune.optim.leyer_decay = 1.0', ['mine.py', 'leyer_decay', 'layer_decay']),
    ('c.modle = {"dim": 3}', ['config.modle', "did you mean 'model'"]),
    ('c.finetune = defaults.mimc()', ['mine.py', 'mimc']),
    ('raise ValueError("no\\nsuch")', ['mine.py', 'ValueError: no such']),
    ('return None', ['mine.py', 'expected a function get_config']),
    ('c.finetune.epochs = 0.0', ['config.finetune.epochs is 0.0', 'above 0']),
    ('c.finetune.augment.mean = (0.5, 0.5)', ['augment.mean', 'three numbers']),
  ],
)
def test_a_mistake_inside_a_config_file_is_one_line(lines, words, tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
    'from mimic_jax import defaults, objectives\ndef get_config():\n  c = defaults.base()\n  c.stages = "finetune"\n'
    f'  c.finetune = objectives.defaults("mimic")\n  {lines}\n  return c\n'
  )
  with pytest.raises(UserError) as e:
    parse(f'--config={file}')
  assert '\n' not in str(e.value)
  for word in words:
    assert word in str(e.value), str(e.value)


def test_a_file_that_is_no_config_is_one_line(tmp_path):
  for text in ('{"a": 1', '# A page', 'x = 1'):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(UserError, match=r'a\.json: '):
      parse(f'--config={tmp_path / "a.json"}')


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--config=quikstart'], ["'quikstart'", "did you mean 'quickstart'"]),
    (['--config=quickstart:minut'], ["'minut'", "did you mean 'minute'"]),
    ([], ['--config is missing', 'quickstart']),
    (['--config=quickstart', '--config.finetune.optim.lrr=1'], ["no field 'lrr'", "did you mean 'lr'"]),
    (['--config=quickstart', '--config.optim.lr=1'], ["no field 'optim'", 'optim.lr']),
    (['--config=quickstart', '--config.finetune.optim.lr=fast'], ['config.finetune.optim.lr', "'fast'"]),
    (['--config=quickstart', '--config.finetune.optim.lr=inf'], ["config.finetune.optim.lr is 'inf'", 'a number']),
    (['--config=quickstart', '--config.finetune.batch_images=0'], ['config.finetune.batch_images is 0', 'at least 1']),
    (['--config=quickstart', '--config.finetune.mix.partner=shfit'], ['config.finetune.mix.partner', "did you mean 'shift'"]),
    (['--config=quickstart', '--config.finetune.contrast.distance=L1'], ['contrast.distance', "did you mean 'l1'"]),
    (['--config=quickstart', '--config.model.preset=vit_b32'], ['config.model.preset', 'vit_b16']),
    (['--config=quickstart', '--config.stages=pretrain,finetun'], ['config.stages', "did you mean 'finetune'"]),
    (['--config=quickstart', '--config.stages='], ['config.stages', 'expected one or more of']),
    (['--config=quickstart', '--wrokdir=x'], ['--wrokdir is no flag', "did you mean 'workdir'"]),
    (['--config=quickstart', 'stray'], ["'stray' is not understood"]),
    (['--config=quickstart', '--config.pretrain.augment.rand_std=1.0'], ['pretrain.augment.rand_std is 1.0', 'rand_ops=2']),
    (['--config=quickstart', '--config.pretrain.augment.scale=(0.9,0.2)'], ['augment.scale', 'low ≤ high']),
    (['--config=quickstart', '--config.pretrain.mae.mask_ratio=1.5'], ['mae.mask_ratio is 1.5', 'from 0.01 to 0.99']),
  ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line_that_names_the_field_and_the_nearest(args, words):
  with pytest.raises(UserError) as e:
    parse(*args)
  message = str(e.value)
  assert '\n' not in message
  for word in words:
    assert word in message, message


def test_a_config_file_with_a_mistake_is_named(tmp_path):
  bad = tmp_path / 'mine.py'
  bad.write_text('def get_config(:\n')
  with pytest.raises(UserError, match=r'mine\.py: SyntaxError'):
    parse(f'--config={bad}')
  bad.write_text('x = 1\n')
  with pytest.raises(UserError, match='expected a function get_config'):
    parse(f'--config={bad}')


def test_differences_name_what_changed_and_leave_out_what_a_resumed_run_may_change():
  a, b = defaults.base(), defaults.base()
  a.finetune, b.finetune = objectives.defaults('mimic'), objectives.defaults('mimic')
  assert config_lib.differences(a, b) == []
  b.finetune.optim.lr = 5.0
  b.mesh.fsdp = 8
  b.finetune.data.threads = 1
  assert config_lib.differences(a, b) == ['finetune.optim.lr: 0.0001 → 5.0']


def test_differences_survive_json():
  a = ConfigDict({'pair': (1, 2)})
  assert config_lib.differences({'pair': [1, 2]}, a) == []


def test_a_field_that_an_older_run_does_not_have_counts_as_its_default():
  new = defaults.base()
  new.finetune = objectives.defaults('mimic')
  old = new.to_dict()
  del old['finetune']['data']['sampler'], old['finetune']['init_head'], old['log']
  assert config_lib.differences(old, new) == []
  new.finetune.data.sampler = 'balanced'
  assert config_lib.differences(old, new) == ['finetune.data.sampler: shuffle → balanced']
  new.finetune.data.sampler, new.finetune.data.held_out = 'shuffle', 0.1
  assert config_lib.differences(old, new) == ['finetune.data.held_out: 0.0 → 0.1']
  del old['finetune']['data']['held_out']  # configs/finetune_folder.py has a tenth since there was one
  assert config_lib.differences(old, new) == []
  old['finetune']['forgotten'] = 1
  assert 'finetune.forgotten: 1 → (absent)' in config_lib.differences(old, new)


def test_the_command_line_ends_with_code_2_and_no_traceback():
  done = subprocess.run(
    [sys.executable, '-m', 'mimic_jax.main', '--config=quickstart', '--config.finetune.batch_image=3'],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert 'Traceback' not in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert "did you mean 'batch_images'" in done.stderr


def test_help_prints_the_configs(capsys):
  with pytest.raises(SystemExit) as e:
    parse('--help')
  assert e.value.code == 0
  assert 'quickstart' in capsys.readouterr().out


def test_help_of_a_config_has_its_header_its_words_and_every_field_with_meaning_and_bounds(capsys):
  with pytest.raises(SystemExit) as e:
    parse('--config=finetune_ferplus:small', '--config.seed=7', '--help')
  assert e.value.code == 0
  said = ' '.join(capsys.readouterr().out.split())
  assert said.startswith('Stage two on FERPlus')
  assert 'vitb16 | vitl16 | small | ours; mscl | ce' in said
  config = parse('--config=finetune_ferplus:small').config
  for name, _ in config_lib.fields(config):
    assert f'--config.{name}=' in said
  for field in (
    'seed=7 of everything: weights',
    'finetune.contrast.weight=0.1 λ; 0 = cross-entropy alone; at least 0',
    "finetune.contrast.distance='tv' tv (½·L1 [D]) | l1 | l2 | linf, between labels",
    'pretrain.mae.mask_ratio=0.75 0.01 to 0.99',
    "finetune.mix.box='batch' one CutMix box per batch | sample (its own place each)",
  ):
    assert f'--config.{field}' in said
