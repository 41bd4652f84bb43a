"""MIMIC (arXiv 2401.07245) in JAX: masked image pre-training, mix-supervised contrastive fine-tuning."""

import os
import time
import typing

if typing.TYPE_CHECKING:
  from mimic_jax.serving import Model

BEGAN = time.monotonic()  # of what is here, which a command imports first
__version__ = '0.1.0'


def load(path: str | os.PathLike[str], *, ema: bool = False) -> 'Model':
  """Loads a trained model, ready to answer: `load('runs/mine').predict('a.jpg')`; see serving.load."""
  from mimic_jax import serving  # whoever only asks for the version need not wait for JAX

  return serving.load(path, ema=ema)
