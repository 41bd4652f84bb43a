"""MIMIC (arXiv 2401.07245) in JAX: masked image pre-training, mix-supervised contrastive fine-tuning."""

__version__ = '0.1.0'
