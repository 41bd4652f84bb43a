"""How operations are counted: 2 for each multiply-add of matrix products and convolutions; each encoder counts its own.

Norms, softmax, activations and what is computed twice to save memory do not count (as PaLM counts MFU, arXiv 2204.02311 appendix B).
"""

# Of forward and backward: each product has two in the backward pass. That of the pixels, which nobody needs, is counted, too.
TRAINING = 3


def linear(rows: int, into: int, out: int) -> int:
  """Returns what a matrix product takes."""
  return 2 * rows * into * out
