"""Two steps of each shipped objective as numbers: a rewrite that is to change nothing must leave them."""

import numpy as np
import pytest
from etils import epath
from ml_collections import FrozenConfigDict

from mimic_jax.runtime import sharding
from mimic_jax.training import stage as stage_lib
from tests import small

# (loss, gradient norm) of the first two steps in float32 on a CPU, of revision 949db9d; of the later ones, as they came
PINNED = {
  'masked_autoencoding': [(1.1325663, 0.34798068), (1.1282032, 0.32525438)],
  'local_mim': [(0.47765702, 1.0826831), (0.45762974, 1.0965742)],
  'moco_v3': [(3.2298415, 34.320335), (2.0638540, 50.450020)],
  'mimic': [(2.3094606, 2.0375903), (2.4978976, 4.3952041)],
  'regression': [(0.99999946, 0.096892461), (0.99993372, 0.072795577)],
  'hmtl': [(3.5844457, 4.4454226), (3.5517306, 2.4302738)],
  'hmtl_inpaint': [(2.8760176, 1.5105617), (2.8568664, 1.3696747)],
  'ssl_fer': [(7.1355782, 131.94702), (6.7583966, 93.790665)],
  'amcl_masks': [(2.1563473, 0.21801659), (2.2018461, 0.22750600)],
  'amcl': [(2.5379972, 11.799044), (2.6270418, 10.123685)],
}
STAGES = {
  'masked_autoencoding': small.mae_stage,
  'local_mim': small.local_mim_stage,
  'moco_v3': small.moco_stage,
  'mimic': small.mimic_stage,
  'ssl_fer': small.ssl_fer_stage,
  'regression': small.regression_stage,
  'hmtl': small.hmtl_stage,
  'hmtl_inpaint': small.inpaint_stage,
  'amcl_masks': small.amcl_masks_stage,
  'amcl': small.amcl_stage,
}


@pytest.mark.parametrize('objective', PINNED)
def test_two_steps_give_the_numbers_they_always_gave(objective, tmp_path):
  config = FrozenConfigDict(small.run_config(only=STAGES[objective]()))
  stage = stage_lib.Stage(config, 'only', epath.Path(tmp_path), sharding.make_mesh())
  stage.prepare()
  state, got, rng = stage.program.init(stage.init_key), [], np.random.default_rng(0)
  for _ in range(2):
    group = stage.objective.pictures
    lead = (8,) if group == 1 else (8, group)
    image = rng.integers(0, 256, (*lead, 16, 16, 3), np.uint8)
    batch = {
      'image': image,
      'label': rng.integers(0, 7, lead).astype(np.int32),
      'index': np.arange(np.prod(lead), dtype=np.int32).reshape(lead),
      **{
        name: rng.uniform(2, 14, (*lead, *what.shape)).astype(np.float32)
        for name, what in stage.objective.targets.items()
      },
    }
    state, measured = stage.program.step(state, sharding.to_devices(batch, stage.mesh), stage.step_key)
    got.append([float(measured[k]) for k in ('loss', 'grad_norm')])
  # 2e-5: other processors round otherwise; another order of two draws moves the third digit
  np.testing.assert_allclose(got, PINNED[objective], rtol=2e-5)
