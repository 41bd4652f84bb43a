"""The Vision Transformer encoder: patches, fixed sin-cos positions, a stack of pre-norm blocks. Arithmetic only.

The blocks are one module whose parameters carry a leading axis [depth, ...]; they are scanned or unrolled, as an option of
execution with equal results. Shapes: B images, L patches, N = 1 + L tokens, D width, p patch side.
Architecture and initialisation are MAE's (arXiv 2111.06377; method.md §1).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mimic_jax.models import flops
from mimic_jax.runtime import sharding

EPSILON = 1e-6  # of every LayerNorm, as MAE and timm have it
TOKENS = ('cls_token', 'mask_token', 'register_tokens')
TOKEN_STD = 0.02  # of them at the start

# name: (patch side, width, blocks, heads). MAE's sizes; Ti is DeiT's.
PRESETS = {
  'vit_ti16': (16, 192, 12, 3),
  'vit_s16': (16, 384, 12, 6),
  'vit_b16': (16, 768, 12, 12),
  'vit_l16': (16, 1024, 24, 16),
  'vit_h14': (14, 1280, 32, 16),
}
POS_EMBEDS = ('sincos2d', 'sincos2d_moco')
ATTENTIONS = ('auto', 'xla', 'cudnn')


def _products(primitive: Any, *args: Any, **params: Any) -> bool:
  """Returns whether an operation is a product of matrices, or cuDNN's attention, which is made of them."""
  attention = primitive.name.startswith('dot_product_attention')
  return attention or jax.checkpoint_policies.dots_saveable(primitive, *args, **params)


# What is kept of each block for the backward pass, which computes the rest anew. Norms, softmax and GELU are cheaper to compute
# than to write and read.
REMATS = {
  'none': jax.checkpoint_policies.everything_saveable,
  'dots': _products,
  'weight_dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


class Config(NamedTuple):
  """A stack of blocks over the patches of a square image. Hashable; `models.encoder_config` checks the values."""

  image_size: int = 224
  patch_size: int = 16
  dim: int = 768
  depth: int = 12
  heads: int = 12
  mlp_ratio: float = 4.0
  pos_embed: str = 'sincos2d'
  dtype: str = 'bfloat16'  # of the arithmetic; parameters, LayerNorm and softmax are float32
  scan: bool = True
  remat: str = 'dots'
  attention: str = 'auto'
  drop_path: float = 0.0  # of the last block; rises linearly from 0 at the first
  layer_norm_eps: float = EPSILON
  registers: int = 0  # tokens that take part in attention and are no output (arXiv 2309.16588)
  layer_scale: float = 0.0  # what each branch's factor per channel begins with (arXiv 2103.17239); 0 = none

  @property
  def grid(self) -> int:
    """Patches along one side."""
    return self.image_size // self.patch_size

  @property
  def layers(self) -> int:
    """The last layer's number: the blocks', and one more for what comes after them."""
    return self.depth + 1

  def layer_id(self, path: tuple[str, ...]) -> int | range:
    """Returns a parameter's layer (method.md §1): tokens and embedding 0, block i i + 1 along the stacked axis, the rest last."""
    if path[0] == 'blocks':
      return range(1, self.depth + 1)
    return 0 if path[0] in ('cls_token', 'register_tokens', 'pos_embed', 'patch_embed') else self.layers

  def decays(self, path: tuple[str, ...], ndim: int, tokens: bool) -> bool:
    """Returns whether a parameter gets weight decay: matrices do, biases, norms and positions don't, tokens if asked to.

    Holds for whatever is built of blocks, a decoder too: their stacked axis is no axis of a parameter's own.
    """
    return ndim - ('blocks' in path) >= 2 and path[-1] != 'pos_embed' and (tokens or path[-1] not in TOKENS)

  def flops(self, kept: int = 0) -> int:
    """Returns what a picture takes, forward; of `kept` patches, 0 = all."""
    patches = kept or self.grid**2
    embed = flops.linear(patches, 3 * self.patch_size**2, self.dim)
    return embed + self.block_flops(1 + self.registers + patches)

  def block_flops(self, tokens: int) -> int:
    """Returns what all blocks over N tokens take, forward: 2 · depth · (N · (4 D² + 2 D · hidden) + 2 N² · D)."""
    D, hidden = self.dim, int(self.dim * self.mlp_ratio)
    products = tokens * (4 * D * D + 2 * D * hidden)  # qkv and proj, the two of the MLP
    return 2 * self.depth * (products + 2 * tokens * tokens * D)  # scores, values

  def create(self, rngs: nnx.Rngs) -> 'Encoder':
    """Returns a fresh encoder."""
    return Encoder(self, rngs)


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
  """Cuts images [B, H, W, 3] into patches [B, L, p·p·3], row by row; the values of a patch are ordered (row, column, colour)."""
  B, H, W, C = images.shape
  h, w, p = H // patch_size, W // patch_size, patch_size
  x = images.reshape(B, h, p, w, p, C).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(B, h * w, p * p * C)


def unpatchify(patches: jax.Array, patch_size: int, grid: tuple[int, int]) -> jax.Array:
  """Puts patches [B, h·w, p·p·C] back into images [B, h·p, w·p, C] with `grid` = (h, w); the inverse of `patchify`."""
  (h, w), p = grid, patch_size
  x = patches.reshape(patches.shape[0], h, w, p, p, -1).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(patches.shape[0], h * p, w * p, -1)


def sincos_2d(dim: int, grid_h: int, grid_w: int, kind: str = 'sincos2d') -> np.ndarray:
  """Returns the fixed position table, float32 [1 + L, dim]; row 0 (the class token) is zero.

  ω_k = 10000^(−k/(dim/4)); each half of a row is [sin(ω·position), cos(ω·position)]. With 'sincos2d' (MAE) the first half
  takes the column of the patch and the second its row; with 'sincos2d_moco' (MoCo v3) it is the other way round.
  """
  omega = 10000.0 ** -(np.arange(dim // 4, dtype=np.float64) / (dim / 4))
  row, column = np.meshgrid(np.arange(grid_h), np.arange(grid_w), indexing='ij')
  first, second = (column, row) if kind == 'sincos2d' else (row, column)
  angles = [axis.reshape(-1, 1) * omega[None, :] for axis in (first, second)]
  table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
  return np.concatenate([np.zeros((1, dim)), table]).astype(np.float32)


def resize_pos_embed(pos_embed: jax.Array, grid: tuple[int, int], antialias: bool = False) -> jax.Array:
  """Resizes the patch rows of pos_embed [1, 1 + s·s, D] to [1, 1 + h·w, D] with `grid` = (h, w); the class row stays.

  Bicubic, as torch.nn.functional.interpolate(mode='bicubic', align_corners=False) does it, so that converted weights agree.
  DINOv2 with registers has it with antialiasing.
  """
  side = round((pos_embed.shape[1] - 1) ** 0.5)
  if grid == (side, side):
    return pos_embed
  table = pos_embed[:, 1:].reshape(1, side, side, -1)
  shape = (1, *grid, table.shape[-1])
  # PyTorch's cubic has a = −0.75; 'cubic' would have −0.5
  resized = jax.image.resize(table, shape, jax.image.ResizeMethod.CUBIC_PYTORCH, antialias=antialias)
  return jnp.concatenate([pos_embed[:, :1], resized.reshape(1, grid[0] * grid[1], -1)], axis=1)


def linear(in_features: int, out_features: int, dtype: str, rngs: nnx.Rngs) -> nnx.Linear:
  """Returns a Linear with a Xavier-uniform kernel [in, out] and zero bias (MAE's initialisation)."""
  init = nnx.initializers.xavier_uniform()
  return nnx.Linear(in_features, out_features, dtype=jnp.dtype(dtype), kernel_init=init, rngs=rngs)


def layer_norm(config: 'Config', dtype: str, rngs: nnx.Rngs) -> nnx.LayerNorm:
  """Returns a LayerNorm over the width: statistics in float32, output in `dtype`."""
  # the fast variance, E[x²] − E[x]², cancels when the mean is large beside the spread.
  epsilon = config.layer_norm_eps
  return nnx.LayerNorm(
    config.dim, epsilon=epsilon, dtype=jnp.dtype(dtype), use_fast_variance=False, rngs=rngs
  )


def gather_tokens(x: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns tokens `ids` [B, M] of x [B, N, D] as [B, M, D]; the ids must lie within 0..N−1."""
  return jnp.take_along_axis(x, ids[:, :, None], axis=1, mode='promise_in_bounds')


def attention_implementation(choice: str, dtype: str) -> str:
  """Resolves 'auto' for the default device: cuDNN on NVIDIA GPUs from Ampere on when computing in bfloat16, else XLA."""
  if choice != 'auto':
    return choice
  device = jax.devices()[0]
  capability = str(getattr(device, 'compute_capability', '')).split('.')[0]
  flash = device.platform == 'gpu' and capability.isdigit() and int(capability) >= 8
  return 'cudnn' if flash and dtype == 'bfloat16' else 'xla'


class Attention(nnx.Module):
  """Multi-head self-attention with a fused qkv kernel [D, 3·D] (columns: query, key, value); softmax in float32."""

  def __init__(self, config: Config, rngs: nnx.Rngs):
    self.heads = config.heads
    self.implementation = attention_implementation(config.attention, config.dtype)
    self.qkv = linear(config.dim, 3 * config.dim, config.dtype, rngs)
    self.proj = linear(config.dim, config.dim, config.dtype, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps tokens [B, N, D] to [B, N, D]."""
    B, N, D = x.shape
    qkv = self.qkv(x).reshape(B, N, 3, self.heads, D // self.heads)
    q, k, v = (qkv[:, :, i] for i in range(3))
    attended = jax.nn.dot_product_attention(q, k, v, implementation=self.implementation)
    return self.proj(attended.reshape(B, N, D))


class Mlp(nnx.Module):
  """Linear, exact (erf) GELU, Linear."""

  def __init__(self, config: Config, rngs: nnx.Rngs):
    hidden = int(config.dim * config.mlp_ratio)
    self.fc1 = linear(config.dim, hidden, config.dtype, rngs)
    self.fc2 = linear(hidden, config.dim, config.dtype, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps tokens [B, N, D] to [B, N, D]."""
    return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
  """One pre-norm transformer block: x + attention(LN(x)), then x + MLP(LN(x)); layer scale multiplies the two branches."""

  def __init__(self, config: Config, rngs: nnx.Rngs):
    self.norm1 = layer_norm(config, config.dtype, rngs)
    self.attn = Attention(config, rngs)
    self.norm2 = layer_norm(config, config.dtype, rngs)
    self.mlp = Mlp(config, rngs)
    start = jnp.full(config.dim, config.layer_scale)
    self.ls1, self.ls2 = (nnx.Param(start), nnx.Param(start)) if config.layer_scale else (None, None)

  def __call__(self, x: jax.Array, path_scale: jax.Array | None = None) -> jax.Array:
    """Maps tokens [B, N, D] to [B, N, D]; `path_scale` [2, B] multiplies the two residual branches (drop-path)."""
    x = x + _scaled(self.attn(self.norm1(x)), self.ls1, path_scale, 0)
    return x + _scaled(self.mlp(self.norm2(x)), self.ls2, path_scale, 1)


def _scaled(
  branch: jax.Array, layer_scale: nnx.Param | None, path_scale: jax.Array | None, i: int
) -> jax.Array:
  if layer_scale is not None:
    branch = branch * layer_scale[...][None, None].astype(branch.dtype)
  return branch if path_scale is None else branch * path_scale[i][:, None, None].astype(branch.dtype)


def stacked_blocks(config: Config, rngs: nnx.Rngs) -> Block:
  """Returns `config.depth` blocks as one module with parameters [depth, ...], each block initialised by its own key."""

  @nnx.vmap
  def create(key: jax.Array) -> Block:
    return Block(config, nnx.Rngs(key))

  return create(jax.random.split(rngs.params(), config.depth))


def drop_path_scales(key: jax.Array, config: Config, batch: int) -> jax.Array:
  """Draws the factors of drop-path (stochastic depth), float32 [depth, 2, B]: 0 or 1/(1 − rate), per sample and branch.

  The rate rises linearly from 0 at the first block to `config.drop_path` at the last.
  """
  kept = 1.0 - jnp.linspace(0.0, config.drop_path, config.depth)[:, None, None]
  u = jax.random.uniform(key, (config.depth, 2, batch))
  return jnp.where(u < kept, 1.0 / kept, 0.0)


def tap_blocks(
  blocks: Block, x: jax.Array, config: Config, taps: Sequence[int], key: jax.Array | None = None
) -> list[jax.Array]:
  """Applies stacked `blocks` up to the last that is tapped; returns the tokens [B, N, D] behind each of `taps`.

  Args:
    blocks: of `stacked_blocks`.
    x: tokens [B, N, D].
    config: of the blocks.
    taps: numbers of blocks, from 0, rising.
    key: draws drop-path; None (or a rate of 0) leaves it out.
  """
  graphdef, stack = nnx.split(blocks)
  x = sharding.along_batch(x)
  scales = None if key is None or not config.drop_path else drop_path_scales(key, config, x.shape[0])

  def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, None]:
    parameters, scale = layer
    return sharding.along_batch(nnx.merge(graphdef, parameters)(x, scale)), None

  if config.remat != 'none':
    # inside a scan nothing can be merged across the barrier, so XLA needn't be kept from trying
    body = jax.checkpoint(body, prevent_cse=not config.scan, policy=REMATS[config.remat])
  # a scan ends at each tap: one that gave out what is behind every block would keep them all
  ends = tuple(taps) if config.scan else tuple(range(taps[-1] + 1))
  tapped = []
  for end, part in zip(ends, _parts((stack, scales), ends, config.depth)):
    x, _ = jax.lax.scan(body, x, part) if config.scan else body(x, jax.tree.map(lambda a: a[0], part))
    if end in taps:
      tapped.append(x)
  return tapped


def _parts(tree: tuple, ends: Sequence[int], depth: int) -> list[tuple]:
  """Splits arrays [depth, …] behind each of `ends`."""
  if tuple(ends) == (depth - 1,):
    return [tree]
  # lax.split's transpose is one concatenation; that of indexing would add an array of the full size for each part.
  sizes = [int(n) for n in np.diff((-1, *ends, depth - 1))]
  leaves, structure = jax.tree.flatten(tree)
  columns = [jax.lax.split(leaf, sizes) for leaf in leaves]
  return [jax.tree.unflatten(structure, part) for part in zip(*columns, strict=True)]


class Encoder(nnx.Module):
  """The ViT encoder of MAE: tokens of an image's patches and a class token.

  Parameters: patch_embed (Linear over p·p·3 values), cls_token [1, 1, D], pos_embed [1, 1 + L, D], blocks [depth, ...], norm;
  register_tokens [1, R, D] where the config has some.
  """

  def __init__(self, config: Config, rngs: nnx.Rngs):
    D, p = config.dim, config.patch_size
    self.config = config
    self.patch_embed = linear(p * p * 3, D, config.dtype, rngs)
    self.cls_token = nnx.Param(TOKEN_STD * jax.random.normal(rngs.params(), (1, 1, D)))
    table = sincos_2d(D, config.grid, config.grid, config.pos_embed)
    self.pos_embed = nnx.Param(jnp.asarray(table[None]))
    self.blocks = stacked_blocks(config, rngs)
    self.norm = layer_norm(config, config.dtype, rngs)
    if config.registers:
      self.register_tokens = nnx.Param(TOKEN_STD * jax.random.normal(rngs.params(), (1, config.registers, D)))

  def __call__(
    self,
    images: jax.Array,
    *,
    key: jax.Array | None = None,
    keep: jax.Array | None = None,
    norm: bool = True,
  ) -> jax.Array:
    """Encodes images.

    Args:
      images: float [B, S, S, 3], normalised, with S = config.image_size.
      key: draws drop-path; None = deterministic.
      keep: int [B, K] ids of the patches to encode, in this order; None = all. Positions are added before, the class
        token joins after, as MAE masks.
      norm: whether the final LayerNorm is applied (global average pooling does without it and has its own).

    Returns:
      Tokens [B, 1 + L (or K), D] in the compute dtype; token 0 is the class token, registers are left out.
    """
    x = self.tapped(images, (self.config.depth - 1,), key=key, keep=keep)[0]
    return self.norm(x) if norm else x

  def tapped(
    self,
    images: jax.Array,
    taps: Sequence[int],
    *,
    key: jax.Array | None = None,
    keep: jax.Array | None = None,
  ) -> list[jax.Array]:
    """Returns what stands behind blocks inside the stack, without the final LayerNorm: tokens as of the call, one array for each.

    Args:
      images: as for the call.
      taps: numbers of the blocks, from 0, rising.
      key: as for the call.
      keep: as for the call.
    """
    tapped = tap_blocks(self.blocks, self.embed(images, keep), self.config, taps, key)
    R = self.config.registers
    return [jnp.concatenate([x[:, :1], x[:, 1 + R :]], axis=1) for x in tapped] if R else tapped

  def features(self, images: jax.Array, *, key: jax.Array | None = None, pool: str = 'gap') -> jax.Array:
    """Returns pooled tokens, float32 [B, D]: their mean ('gap'; without the final norm) or the class token ('cls'); a key draws drop-path."""
    tokens = self(images, key=key, norm=pool == 'cls').astype(jnp.float32)
    pooled = tokens[:, 0] if pool == 'cls' else jnp.mean(tokens[:, 1:], axis=1, dtype=jnp.float32)
    return sharding.along_batch(pooled)

  def embed(self, images: jax.Array, keep: jax.Array | None = None) -> jax.Array:
    """Returns what the first block sees of images: tokens [B, 1 + R + L (or K), D]; the arguments are those of the call."""
    config = self.config
    patches = patchify(images.astype(config.dtype), config.patch_size)
    pos_embed = self.pos_embed[...]
    pos_cls, pos_patch = pos_embed[:, :1], pos_embed[:, 1:]
    if keep is not None:
      # a patch's embedding depends on that patch alone: the removed ones need not be embedded
      patches = gather_tokens(patches, keep)
      pos_patch = jnp.take(pos_patch[0], keep, axis=0, mode='clip')
    x = self.patch_embed(patches) + pos_patch.astype(config.dtype)
    cls = (self.cls_token[...] + pos_cls).astype(config.dtype)
    # registers have no position
    first = [cls, self.register_tokens[...].astype(config.dtype)] if config.registers else [cls]
    return jnp.concatenate([*(jnp.broadcast_to(t, (x.shape[0], *t.shape[1:])) for t in first), x], axis=1)
