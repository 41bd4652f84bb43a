"""The same steps in PyTorch, on transformers' models with torch's optimisers, on crops that are ready."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks import cases
from mimic_jax import objectives
from tests import peers


def take(
  name: str,
  images: int,
  learned: objectives.Objective,
  device: str = 'cpu',
  fast: bool = False,
  whole: bool = False,
) -> Callable[[int], None]:
  """Returns a call that takes so many steps and waits for the last.

  Args:
    name: of cases.CASES.
    images: of a batch.
    learned: ours, which has the sizes.
    device: 'cpu' or 'cuda'.
    fast: bfloat16 by autocast, TF32 for what stays float32, channels last, a fused optimiser.
    whole: torch.compile makes one program of forward and loss.
  """
  kind = torch.optim.AdamW if name == 'mae' else torch.optim.Adam
  with torch.device(device):
    net, loss = {'mae': _mae, 'mimic': _mimic, 'resnet': _resnet}[name](images, learned)
  if fast:
    torch.set_float32_matmul_precision('high')
    net = net.to(memory_format=torch.channels_last)
  optimiser = kind(net.parameters(), lr=1e-4, weight_decay=0.05, fused=fast or None)
  loss = torch.compile(loss) if whole else loss

  def steps(count: int) -> None:
    for _ in range(count):
      optimiser.zero_grad()
      with torch.autocast(device, torch.bfloat16, enabled=fast):
        value = loss()
      value.backward()
      optimiser.step()
    if device == 'cuda':
      torch.cuda.synchronize()

  return steps


def _sizes(config: Any) -> dict[str, Any]:
  return {
    'hidden_size': config.dim,
    'num_hidden_layers': config.depth,
    'num_attention_heads': config.heads,
    'intermediate_size': int(config.mlp_ratio * config.dim),
    'image_size': config.image_size,
    'patch_size': config.patch_size,
    'attn_implementation': 'sdpa',
  }


def _mae(images: int, learned: Any) -> tuple[Any, Callable[[], Any]]:
  names = ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size')
  decoder = _sizes(learned.decoder_config)
  config = transformers.ViTMAEConfig(
    norm_pix_loss=True, **_sizes(learned.config), **{f'decoder_{name}': decoder[name] for name in names}
  )
  net = transformers.ViTMAEForPreTraining(config).train()
  x = torch.randn(images, 3, config.image_size, config.image_size)
  return net, lambda: net(pixel_values=x).loss


def _mimic(images: int, learned: Any) -> tuple[Any, Callable[[], Any]]:
  nn, classes, dim, side = torch.nn, cases.CLASSES, learned.config.dim, learned.config.image_size
  projected = learned.stage['head']['projection_dim']
  net = nn.ModuleDict(
    {
      'vit': transformers.ViTModel(transformers.ViTConfig(**_sizes(learned.config)), add_pooling_layer=False),
      'norm': nn.LayerNorm(dim),
      'classifier': nn.Linear(dim, classes),
      'projection': nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, projected)),
    }
  ).train()
  x = torch.randn(2 * images, 3, side, side)
  y = nn.functional.one_hot(torch.arange(2 * images) % classes, classes).float()
  other = ~torch.eye(2 * images, dtype=torch.bool)

  def loss() -> Any:
    mixed, target = 0.7 * x + 0.3 * x.roll(1, 0), 0.7 * y + 0.3 * y.roll(1, 0)
    r = net['norm'](net['vit'](pixel_values=mixed).last_hidden_state[:, 1:].mean(1))
    ce = nn.functional.cross_entropy(net['classifier'](r), target)
    z = nn.functional.normalize(net['projection'](r), dim=1)
    s = (z @ z.T / 0.07).masked_fill(~other, -torch.inf).log_softmax(1)
    positive = (torch.cdist(target, target, p=1) / 2 <= 0.5) & other
    return ce - 0.1 * (s.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp(min=1)).mean()

  return net, loss


def _resnet(images: int, learned: Any) -> tuple[Any, Callable[[], Any]]:
  side = learned.config.image_size
  net = peers.torch_resnet(torch, (2, 2, 2, 2), False, small_stem=True)
  net.fc = torch.nn.Linear(512, cases.CLASSES)
  x, y = torch.randn(images, 3, side, side), torch.randint(0, cases.CLASSES, (images,))
  return net, lambda: torch.nn.functional.cross_entropy(net.fc(net(x)), y)
