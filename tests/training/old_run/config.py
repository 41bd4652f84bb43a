from tests import small


def get_config():
  """Returns the config of the run that is kept in tests/training/old_run."""
  stages = {'pretrain': small.mae_stage(steps=2), 'finetune': small.mimic_stage(init='pretrain', steps=4)}
  for s in stages.values():
    s.checkpoint.update(every_epochs=0.25, keep=1)
    s.data.update(source='folder', root='pictures')
  stages['pretrain'].mae.update(decoder_dim=8, decoder_depth=1)
  stages['finetune'].head.projection_dim = 4
  c = small.run_config(**stages)
  c.model.update(dim=8, depth=1)
  return c
