"""What a config leaves to its first weights with config.model.preset = 'init': the model's sizes and how pixels are normalised."""

from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from mimic_jax import config as config_lib
from mimic_jax import defaults, models, weights
from mimic_jax.models import resnet
from mimic_jax.runtime import distributed
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import workdir
from mimic_jax.weights import facts as facts_lib

SHAPE = ('patch_size', 'dim', 'depth', 'heads')  # that a ViT can't do without
FIELDS = ('preset', 'image_size', *SHAPE, 'mlp_ratio', 'layer_norm_eps', *facts_lib.EXTRAS, 'stem')
PIXELS = ('mean', 'std')


def resolved(config: FrozenConfigDict, folder: str = '') -> tuple[FrozenConfigDict, dict[str, Any]]:
  """Returns a config with all sizes in it, and what was taken of which weights, {} for nothing.

  A run that has begun has them in its config.json: its first weights are not looked at, and may be gone.

  Args:
    config: of the command line.
    folder: of the run, where there is one.

  Raises:
    UserError: when there are no weights, they can't be read or don't say all sizes.
  """
  if config.model.preset != models.INIT:
    return config, {}
  old = distributed.agree(lambda: _begun(config, folder)) if folder else {}
  found = old or distributed.agree(lambda: _read(config))
  return filled(config, found), {} if old else found


def filled(config: FrozenConfigDict, found: Mapping[str, Any]) -> FrozenConfigDict:
  """Returns a config with its sizes; a field that is not at its default stays, and so does an image_size that is not 0.

  Args:
    config: with the preset 'init'.
    found: from `of_weights`.

  Raises:
    UserError: when a size is missing, or one is not what `config.check` expects.
  """
  whole = ConfigDict(config.to_dict())
  whole.model = model_section(whole.model, found['model'], found['from'])
  for name, pixels in found['augment'].items():
    _fill(whole[name].augment, defaults.stage().augment, pixels)
  config_lib.check(whole)
  return FrozenConfigDict(whole)


def model_section(model: ConfigDict, sizes: Mapping[str, Any], where: str) -> ConfigDict:
  """Returns an encoder's section with sizes in the fields that are at their defaults; raises UserError where one is missing."""
  usual = defaults.encoder()
  _fill(model, {**usual, 'preset': models.INIT, 'image_size': 0}, sizes)
  model.image_size = model.image_size or usual.image_size  # a ResNet's file does not say it
  if not model.preset:
    raise UserError(
      f'{where} is a ResNet of other blocks than {" and ".join(resnet.PRESETS)} have; expected one of them'
    )
  if absent := [k for k in SHAPE if model.preset == models.INIT and not model[k]]:
    flags = ' '.join(f'--config.model.{k}=' for k in absent)
    raise UserError(f'{where} does not show its {", ".join(absent)}; expected {flags} with it')
  return model


def _fill(section: ConfigDict, usual: Mapping[str, Any], given: Mapping[str, Any]) -> None:
  for key, value in given.items():
    if section[key] == usual[key]:
      section[key] = tuple(value) if isinstance(value, list) else value


def of_weights(config: Mapping[str, Any], facts: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns what weights say: {'from': where, 'model': its fields, 'augment': {stage: mean, std}}, JSON-able."""
  pixels = {k: list(facts[k]) for k in PIXELS if k in facts}
  return {
    'from': where,
    'model': model_fields(facts),
    'augment': dict.fromkeys(config_lib.stages(config), pixels) if pixels else {},
  }


def model_fields(facts: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of config.model that weights say, by their facts; a ViT's preset stays 'init'."""
  return {**({'preset': facts['preset']} if facts.get('stem') else {}), **facts_lib.sizes(facts)}


def told(found: Mapping[str, Any]) -> str:
  """Returns the line that says what was taken."""
  model = ', '.join(f'{k} {v:g}' if isinstance(v, float) else f'{k} {v}' for k, v in found['model'].items())
  pixels = ''.join(f', {k} {tuple(v)}' for k, v in next(iter(found['augment'].values()), {}).items())
  return f'sizes as {found["from"]} has them, where the config has none of its own: {model}{pixels}'


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
  name = config_lib.stages(config)[0]
  init, field = config[name].init, f'config.{name}.init'
  if not init:
    raise UserError(
      f"config.model.preset is 'init', and {field} is ''; expected weights to take the sizes from (--config.init=W)"
    )
  found = weights.read(init, field)
  return of_weights(config, found.facts, found.origin)


def _begun(config: Mapping[str, Any], folder: str) -> dict[str, Any]:
  """Returns what stands in the config.json of a run that has a checkpoint or a result, as `of_weights`; {} without."""
  old = workdir.begun(epath.Path(folder))
  if old is None:
    return {}
  names = [n for n in config_lib.stages(config) if n in old]
  return {
    'from': f'{folder}/config.json',
    'model': {k: old.model[k] for k in FIELDS},
    'augment': {n: {k: list(old[n].augment[k]) for k in PIXELS} for n in names},
  }
