"""Models in PyTorch that ours are held against, in tests and in benchmarks/."""

from typing import Any


def torch_resnet(torch: Any, blocks: tuple[int, ...], bottleneck: bool, small_stem: bool) -> Any:
  """Returns a ResNet with torchvision's names."""
  nn = torch.nn

  class Block(nn.Module):
    def __init__(self, i, w, stride):
      super().__init__()
      out = w * (4 if bottleneck else 1)
      sizes = [(1, w, 1), (3, w, stride), (1, out, 1)] if bottleneck else [(3, w, stride), (3, w, 1)]
      self.n, into = len(sizes), i
      for n, (k, o, s) in enumerate(sizes, 1):
        setattr(self, f'conv{n}', nn.Conv2d(into, o, k, s, k // 2, bias=False))
        setattr(self, f'bn{n}', nn.BatchNorm2d(o))
        into = o
      self.downsample = None
      if stride > 1 or i != out:
        self.downsample = nn.Sequential(nn.Conv2d(i, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
      y = x
      for n in range(1, self.n + 1):
        y = getattr(self, f'bn{n}')(getattr(self, f'conv{n}')(y))
        y = torch.relu(y) if n < self.n else y
      return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1 = nn.Conv2d(
        3, 64, 3 if small_stem else 7, 1 if small_stem else 2, 1 if small_stem else 3, bias=False
      )
      self.bn1, features = nn.BatchNorm2d(64), 64
      for n, (w, count) in enumerate(zip((64, 128, 256, 512), blocks), 1):
        layer = []
        for k in range(count):
          layer.append(Block(features, w, 2 if n > 1 and k == 0 else 1))
          features = w * (4 if bottleneck else 1)
        setattr(self, f'layer{n}', nn.Sequential(*layer))
      self.fc = nn.Linear(features, 7)

    def forward(self, x):
      x = torch.relu(self.bn1(self.conv1(x)))
      x = torch.max_pool2d(x, 3, 2, 1)
      for n in range(1, 5):
        x = getattr(self, f'layer{n}')(x)
      return x.mean((2, 3))

  net = Net()
  with torch.no_grad():
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
      if 'running_var' in name or (name.endswith('weight') and tensor.ndim == 1):
        tensor.uniform_(0.5, 1.5)
      elif tensor.ndim == 1:
        tensor.normal_(0, 0.1)
  return net
