"""MIMIC (arXiv 2401.07245) in JAX: masked image pre-training, mix-supervised contrastive fine-tuning."""

import time

BEGAN = time.monotonic()  # of what is here, which a command imports first
__version__ = '0.1.0'
