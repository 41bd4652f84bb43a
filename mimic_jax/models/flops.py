"""How many operations a model's matrix products and convolutions take, of one picture: 2 for each multiply-add.

Norms, softmax, activations and what is computed twice to save memory do not count (as PaLM counts MFU, arXiv 2204.02311 appendix B).
"""

import math

from mimic_jax.models import resnet, vit

# Of forward and backward: each product has two in the backward pass. That of the pixels, which nobody needs, is counted, too.
TRAINING = 3


def blocks(config: vit.Config, tokens: int) -> int:
  """Returns what `depth` blocks over N tokens take, forward: 2 · depth · (N · (4 D² + 2 D · hidden) + 2 N² · D)."""
  D, hidden = config.dim, int(config.dim * config.mlp_ratio)
  products = tokens * (4 * D * D + 2 * D * hidden)  # qkv and proj, the two of the MLP
  return 2 * config.depth * (products + 2 * tokens * tokens * D)  # scores, values


def linear(rows: int, into: int, out: int) -> int:
  """Returns what a matrix product takes."""
  return 2 * rows * into * out


def encoder(config: vit.Config | resnet.Config, kept: int = 0) -> int:
  """Returns what an encoder takes, forward.

  Args:
    config: of the encoder.
    kept: patches that a ViT is given; 0 = all.
  """
  if isinstance(config, resnet.Config):
    return _resnet(config)
  patches = kept or config.grid**2
  return linear(patches, 3 * config.patch_size**2, config.dim) + blocks(
    config, 1 + config.registers + patches
  )


def decoder(encoder_dim: int, config: vit.Config, kept: int) -> int:
  """Returns what MAE's decoder takes, forward, for the class token and `kept` patches of width `encoder_dim`."""
  patches = config.grid**2
  embed = linear(1 + kept, encoder_dim, config.dim)
  return embed + blocks(config, 1 + patches) + linear(patches, config.dim, 3 * config.patch_size**2)


def _resnet(config: resnet.Config) -> int:
  size, stride = (7, 2) if config.stem == '7x7' else (3, 1)
  side = math.ceil(config.image_size / stride)
  total = linear(side**2, size * size * 3, resnet.WIDTHS[0])
  side, features = math.ceil(side / 2), resnet.WIDTHS[0]  # after the pooling
  for n, (width, count) in enumerate(zip(resnet.WIDTHS, config.blocks, strict=True)):
    out = width * (4 if config.bottleneck else 1)
    for k in range(count):
      stride = 2 if n and not k else 1
      small = math.ceil(side / stride)
      if config.bottleneck:
        total += linear(side**2, features, width) + linear(small**2, 9 * width, width)
        total += linear(small**2, width, out)
      else:
        total += linear(small**2, 9 * features, width) + linear(small**2, 9 * width, width)
      if stride > 1 or features != out:
        total += linear(small**2, features, out)
      side, features = small, out
  return total
