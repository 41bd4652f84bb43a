"""Times one training step, ours against PyTorch's, in turn (A B A B) in one process.

  python -m benchmarks.step mae|mimic|resnet [--rounds 5] [--threads 2]

mae       MAE pre-training, ViT-B/16, 8 pictures of 224 × 224; transformers' ViTMAE with torch's AdamW
mimic     fine-tuning by mixing and contrast, ViT-B/16, 4 pictures, two crops of each; transformers' ViT with torch's Adam
resnet    ResNet-18 with cross-entropy, 128 pictures of 48 × 48; torch's Adam

float32 on whatever is there. Ours is the whole step: crops (of mae the host makes them), flips, normalisation, mixing, loss, gradient,
optimiser, checks. PyTorch gets crops that are ready.
"""

import argparse

import torch

from benchmarks import cases, rivals


def main() -> None:
  """Prints the median of each and the ratio of each round."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('case', choices=cases.CASES)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--threads', type=int, default=2, help="PyTorch's")
  given = parser.parse_args()
  torch.set_num_threads(given.threads)
  case = cases.CASES[given.case]
  stage, learned = cases.stage_of(case, ['--config.model.dtype=float32'])
  ours = cases.ours(case, stage, learned)
  theirs = rivals.take(given.case, case.images, learned)
  steps = {'ours': lambda: ours.take(1), 'PyTorch': lambda: theirs(1)}
  print(cases.compared(cases.in_turn(steps, given.rounds, warm=2), 's'))


if __name__ == '__main__':
  main()
