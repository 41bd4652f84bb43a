"""Times one training step, ours against PyTorch's, in turn (A B A B) in one process.

  python -m benchmarks.step mae|mimic|resnet [--rounds 5] [--threads 2]

mae       MAE pre-training, ViT-B/16, 8 pictures of 224 × 224; transformers' ViTMAE with torch's AdamW
mimic     fine-tuning by mixing and contrast, ViT-B/16, 4 pictures, two crops of each; transformers' ViT with torch's Adam
resnet    ResNet-18 with cross-entropy, 128 pictures of 48 × 48; torch's Adam

float32 on whatever is there. Ours is the whole step: crops (of mae the host makes them), flips, normalisation, mixing, loss, gradient,
optimiser, checks. PyTorch gets crops that are ready.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import transformers
from ml_collections import ConfigDict

from mimic_jax import config as config_lib
from mimic_jax import objectives
from mimic_jax.runtime import sharding
from mimic_jax.training import step as step_lib
from tests import peers

CLASSES = 7
# case: (config, stage, pictures of a batch, shape of one)
CASES = {
  'mae': ('pretrain_imagenet1k:vitb16', 'pretrain', 8, (1, 224, 224, 3)),
  'mimic': ('finetune_rafdb:vitb16', 'finetune', 4, (100, 100, 3)),
  'resnet': ('finetune_ferplus:small_resnet,ce', 'finetune', 128, (48, 48, 3)),
}


def program(case: str) -> step_lib.Program:
  """Returns the compiled parts of a case."""
  name, stage_name, images, _ = CASES[case]
  config = config_lib.load(*config_lib.find_config(name))
  stage, model = ConfigDict(config[stage_name]), ConfigDict(config.model)
  stage.batch_images, model.dtype = images, 'float32'
  objective = objectives.make(stage, model, tuple(map(str, range(CLASSES))), 'objective')
  return step_lib.make_program(stage, objective, 25_045, sharding.make_mesh())


def batch(case: str) -> dict[str, np.ndarray]:
  """Returns random pictures and labels."""
  _, _, images, shape = CASES[case]
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (images, *shape), np.uint8),
    'label': rng.integers(0, CLASSES, images).astype(np.int32),
    'index': np.arange(images, dtype=np.int32),
  }


def ours(case: str) -> Callable[[], None]:
  """Returns a call that takes one of our steps."""
  made, held = program(case), jax.device_put(batch(case))
  state, key = made.init(jax.random.key(0)), jax.random.key(1)

  def step() -> None:
    nonlocal state
    state, measured = made.step(state, held, key)
    jax.block_until_ready((state, measured))

  return step


def theirs(case: str) -> Callable[[], None]:
  """Returns a call that takes one of PyTorch's steps."""
  net, loss = {'mae': _mae, 'mimic': _mimic, 'resnet': _resnet}[case]()
  kind = torch.optim.AdamW if case == 'mae' else torch.optim.Adam
  optimiser = kind(net.parameters(), lr=1e-4, weight_decay=0.05)

  def step() -> None:
    optimiser.zero_grad()
    loss().backward()
    optimiser.step()

  return step


def _mae() -> tuple[Any, Callable[[], Any]]:
  net = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(norm_pix_loss=True)).train()
  x = torch.randn(CASES['mae'][2], 3, 224, 224)
  return net, lambda: net(pixel_values=x).loss


def _mimic() -> tuple[Any, Callable[[], Any]]:
  nn, images = torch.nn, CASES['mimic'][2]
  net = nn.ModuleDict(
    {
      'vit': transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False),
      'norm': nn.LayerNorm(768),
      'classifier': nn.Linear(768, CLASSES),
      'projection': nn.Sequential(nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 128)),
    }
  ).train()
  x = torch.randn(2 * images, 3, 224, 224)
  y = nn.functional.one_hot(torch.arange(2 * images) % CLASSES, CLASSES).float()

  def loss() -> Any:
    mixed, target = 0.7 * x + 0.3 * x.roll(1, 0), 0.7 * y + 0.3 * y.roll(1, 0)
    r = net['norm'](net['vit'](pixel_values=mixed).last_hidden_state[:, 1:].mean(1))
    ce = nn.functional.cross_entropy(net['classifier'](r), target)
    z = nn.functional.normalize(net['projection'](r), dim=1)
    other = ~torch.eye(len(z), dtype=torch.bool)
    s = (z @ z.T / 0.07).masked_fill(~other, -torch.inf).log_softmax(1)
    positive = (torch.cdist(target, target, p=1) / 2 <= 0.5) & other
    return ce - 0.1 * (s.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp(min=1)).mean()

  return net, loss


def _resnet() -> tuple[Any, Callable[[], Any]]:
  _, _, images, (side, _, _) = CASES['resnet']
  net = peers.torch_resnet(torch, (2, 2, 2, 2), False, small_stem=True)
  net.fc = torch.nn.Linear(512, CLASSES)
  x, y = torch.randn(images, 3, side, side), torch.randint(0, CLASSES, (images,))
  return net, lambda: torch.nn.functional.cross_entropy(net.fc(net(x)), y)


def main() -> None:
  """Prints the median of each and the ratio of each round."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('case', choices=CASES)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--threads', type=int, default=2, help="PyTorch's")
  given = parser.parse_args()
  torch.set_num_threads(given.threads)
  steps = {'ours': ours(given.case), 'PyTorch': theirs(given.case)}
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(2):
    for step in steps.values():
      step()
  for _ in range(given.rounds):
    for name, step in steps.items():
      began = time.perf_counter()
      step()
      seconds[name].append(time.perf_counter() - began)
  for name, each in seconds.items():
    print(f'{name:8} median {statistics.median(each):.3f} s of {", ".join(f"{s:.3f}" for s in each)}')
  ratios = [b / a for a, b in zip(seconds['ours'], seconds['PyTorch'], strict=True)]
  print(
    f"our speed / PyTorch's: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
  )


if __name__ == '__main__':
  main()
