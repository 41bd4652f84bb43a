"""Makes the files under tests/weights/golden/, which every later version must read: `python -m tests.weights.golden`.

A form is made once, when it comes, and never again: a reader that fails on one is wrong, not the file.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from mimic_jax.weights import programs, writing
from tests.weights import test_writing as written

FOLDER = pathlib.Path(__file__).parent / 'golden'
SIZES = {'image_size': 8, 'patch_size': 4, 'dim': 8, 'depth': 1, 'heads': 2}
# folder -> form, what is exported
FORMS = {
  'hf_gap': ('hf', 'gap'),
  'hf_cls': ('hf', 'cls'),
  'hf_mae': ('hf', 'mae'),
  'timm_gap': ('timm', 'gap'),
  'timm_cls': ('timm', 'cls'),
  'mae_gap': ('mae', 'gap'),
  'mae_mae': ('mae', 'mae'),
  'stablehlo': ('stablehlo', 'gap'),
  'onnx': ('onnx', 'gap'),
}


def objective_of(kind):
  """The objective of a golden model."""
  return written.objective_of(kind, **SIZES)


def images():
  """What the expected answers are to, float32 [2, 8, 8, 3]."""
  return np.random.default_rng(8).normal(size=(2, 8, 8, 3)).astype(np.float32)


def main():
  for number, (name, (form, kind)) in enumerate(FORMS.items()):
    folder = FOLDER / name
    if folder.exists():
      continue
    folder.mkdir(parents=True)
    objective = objective_of(kind)
    model, m = written.random_model(np.random.default_rng(number), objective)
    if form in writing.WRITERS:
      writing.write(form, m, epath.Path(folder))
    else:
      programs.write(form, lambda x: objective.answers(model, x), 8, np.float32, epath.Path(folder))  # noqa: B023
    answers = jax.device_get(objective.answers(model, jnp.asarray(images())))
    said = {'class_names': m.class_names, 'answers': {k: v.tolist() for k, v in answers.items()}}
    (folder / 'expected.json').write_text(json.dumps(said))


if __name__ == '__main__':
  main()
