"""Supervised pre-training, with which the paper compares (P table II, figs. 5 and 7): DeiT's recipe (arXiv 2012.12877, table 9).

It is fine-tuning's objective with one view, no contrast and another recipe; there is nothing else to it. Two things of DeiT's are not here:
repeated augmentation (three crops of a picture in a batch), and its evaluation on the middle of a picture.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from mimic_jax.objectives import mimic
from mimic_jax.report import citations


class Objective(mimic.Objective):
  """Cross-entropy on mixed pictures; see base.py for the contract."""

  CITES: ClassVar = {'touvron2021training': citations.ENTRIES['touvron2021training']}

  @classmethod
  def defaults(cls) -> ConfigDict:
    """Returns DeiT-B's recipe for ImageNet-1K; the class token is classified (head.pool = 'cls')."""
    s = super().defaults()
    mimic.use_method(s, 'mixed_ce')
    s.objective = 'supervised'
    s.epochs = 300.0
    s.batch_images = 1024
    s.views = 1
    s.head.pool = 'cls'
    s.ce.smoothing = 0.1
    s.mix.mixup_alpha = 0.8
    s.mix.cutmix_alpha = 1.0
    s.augment.scale = (0.08, 1.0)
    s.augment.interpolation = 'bicubic'
    s.augment.rand_ops = 2  # rand-m9-mstd0.5-inc1
    s.augment.erasing = 0.25
    s.optim.name = 'adamw'
    s.optim.lr = 0.0
    s.optim.blr = 2.5e-4  # 5e-4 for 512 pictures
    s.optim.weight_decay = 0.05
    s.optim.layer_decay = 1.0
    s.optim.min_lr = 1e-5
    s.checkpoint.every_epochs = 10.0
    return s

  @classmethod
  def uses(cls, facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> list[tuple[str, ConfigDict]]:
    """Nothing beside what fine-tuning's objective says of the same model."""
    del facts, tensors
    return []
