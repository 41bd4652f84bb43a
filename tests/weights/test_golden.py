"""Files of every exported form, made when it came: each version reads them to the same answers (golden.py)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax.weights import programs
from tests.weights import golden
from tests.weights import test_weights as given


@pytest.mark.parametrize('name', golden.FORMS)
def test_a_file_of_an_earlier_version_gives_the_answers_that_it_gave(name):
  folder = golden.FOLDER / name
  expected = json.loads((folder / 'expected.json').read_text())
  form, kind = golden.FORMS[name]
  if form == 'onnx':
    run = pytest.importorskip('onnxruntime').InferenceSession(folder / programs.FILES[form])
    found = dict(zip([o.name for o in run.get_outputs()], run.run(None, {'images': golden.images()})))
  elif form == 'stablehlo':
    pytest.importorskip('flatbuffers')
    read = jax.export.deserialize(bytearray((folder / programs.FILES[form]).read_bytes()))
    found = read.call(jnp.asarray(golden.images()))
  else:
    if form == 'mae':
      pytest.importorskip('torch')
    objective = golden.objective_of(kind)
    if objective.labelled:
      objective = given.mimic_objective(
        given.model_section(**golden.SIZES),
        tuple(expected['class_names']),
        init_head=True,
        **{'head.pool': kind},
      )
    model, account = given.start(str(folder), objective)
    assert not [n for n in account['fresh'] if not n.startswith(('projection/', 'encoder/norm/'))]
    assert not account['unused']
    found = objective.answers(model, jnp.asarray(golden.images()))
  assert found.keys() == expected['answers'].keys()
  for key, value in expected['answers'].items():
    np.testing.assert_allclose(found[key], value, atol=1e-5)
