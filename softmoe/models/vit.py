"""Vision transformer, plain or with MoE blocks.

The AugReg line of ViT (https://arxiv.org/abs/2106.10270): pre-norm blocks,
learned position embedding, final LayerNorm before the pooling.

Axes: `b` images, `n` tokens, `d` width, `c` classes.
"""

import math
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.models import attention, blocks, mixtures, norms, patches, stack
from softmoe.models.config import ViTConfig

# name: (width, depth, mlp_dim, heads); Zhai et al. 2022 for g and G,
# https://arxiv.org/abs/2106.04560.
SIZES = {
  'mu': (32, 1, 128, 2),
  'Ti': (192, 12, 768, 3),
  'S': (384, 12, 1536, 6),
  'B': (768, 12, 3072, 12),
  'L': (1024, 24, 4096, 16),
  'H': (1280, 32, 5120, 16),
  'g': (1408, 40, 6144, 16),
  'G': (1664, 48, 8192, 16),
}
POSITIONS = ('none', 'rotary')  # beside the learned ones of patches
POOLS = ('gap', 'token', 'map')


def variant(name: str) -> dict[str, Any]:
  """Returns the `ViTConfig` fields of a size and patch, such as 'S/16'.

  Raises:
    UserError: the name is not of the form SIZE/PATCH with a known size.
  """
  size, _, patch = name.partition('/')
  if size not in SIZES or not patch.isdecimal() or not int(patch):
    raise UserError('variant', name, f'SIZE/PATCH, SIZE one of {list(SIZES)}')
  fields = ('width', 'depth', 'mlp_dim', 'num_heads')
  return dict(zip(fields, SIZES[size], strict=True)) | {
    'patch_size': (int(patch), int(patch))
  }


def last_half(depth: int) -> tuple[int, ...]:
  """Returns the indices of the blocks that the paper makes MoE."""
  return tuple(range(depth // 2, depth))


class ViT(nnx.Module):
  """Images in, logits out."""

  def __init__(
    self,
    config: ViTConfig,
    *,
    image_size: tuple[int, int],
    channels: int = 3,
    num_classes: int,
    head_bias: float = 0.0,
    rngs: nnx.Rngs,
  ):
    """Creates the parameters.

    Args:
      config: sizes, types and MoE blocks.
      image_size: height and width in pixels; a rest that fills no patch is
        left out, as a convolution without padding would.
      channels: of an image.
      num_classes: width of the logits; 0: there is no head, for what is after
        the representation alone.
      head_bias: start of the head's bias, -log(num_classes) for the sigmoid
        loss; its kernel starts at zero.
      rngs: source of the parameters' keys.

    Raises:
      UserError: sizes that do not fit together.
    """
    check(config, image_size)
    self.config = config
    self.patches = patches.PatchEmbedding(
      config, image_size, channels, rngs=rngs
    )
    self.blocks = nnx.List(stack.make_blocks(config, rngs))
    self.norm = norms.layer_norm(config, config.width, rngs=rngs)
    self.map_head = MapHead(config, rngs=rngs) if config.pool == 'map' else None
    options = dict(param_dtype=jnp.dtype(config.param_dtype), rngs=rngs)
    representation, dtype = config.representation_size, jnp.dtype(config.dtype)
    self.pre_logits = (
      nnx.Linear(config.width, representation, dtype=dtype, **options)
      if representation
      else None
    )
    self.head = (
      nnx.Linear(
        size(config),
        num_classes,
        kernel_init=nnx.initializers.zeros,
        bias_init=nnx.initializers.constant(head_bias),
        dtype=jnp.float32,
        **options,
      )
      if num_classes
      else None
    )

  def __call__(
    self,
    images: Float[Array, 'b height width channels'],
    key: blocks.Key = None,
    mask: Bool[Array, ' b'] | None = None,
    router_options: dict[str, Any] | None = None,
  ) -> tuple[Float[Array, 'b c'], dict[str, Any]]:
    """Returns float32 logits and the MoE blocks' losses and metrics.

    Args:
      images: pixel values in the range the model was trained on.
      key: for dropout, drop path and routing noise; None at evaluation.
      mask: False where an image only fills the batch up: routers leave it out.
      router_options: further arguments of the routers' calls, by name, such as
        `threshold`; they may be traced.
    """
    representation, aux = self.represent(images, key, mask, router_options)
    return sharding.gather(self.head)(representation), aux

  def represent(
    self,
    images: Float[Array, 'b height width channels'],
    key: blocks.Key = None,
    mask: Bool[Array, ' b'] | None = None,
    router_options: dict[str, Any] | None = None,
  ) -> tuple[Float[Array, 'b d'], dict[str, Any]]:
    """Returns what the head sees: the pooled, normalised tokens, and `aux`."""
    keys = [None] * 2 if key is None else list(jax.random.split(key))
    dtype = jnp.dtype(self.config.dtype)
    x = sharding.gather(self.patches, dtype)(images)
    if self.config.dropout:
      x = blocks.dropout(x, self.config.dropout, keys[0], x.shape)
    if mask is not None:
      mask = jnp.broadcast_to(mask[:, None], x.shape[:2])
    x, aux, _ = stack.apply_blocks(
      self.blocks,
      self.config,
      x,
      keys[1],
      mask=mask,
      router_options=router_options,
    )
    x = self._pool(sharding.gather(self.norm)(x))
    if self.pre_logits is not None:
      x = jnp.tanh(sharding.gather(self.pre_logits, dtype)(x))
    return x, aux

  def _pool(self, x: Float[Array, 'b n d']) -> Float[Array, 'b d']:
    if self.map_head is not None:
      dtype = jnp.dtype(self.config.dtype)
      return sharding.gather(self.map_head, dtype)(x)
    return x[:, 0] if self.config.pool == 'token' else jnp.mean(x, axis=1)


def size(config: ViTConfig) -> int:
  """Returns the width of the representation."""
  return config.representation_size or config.width


def check(config: ViTConfig, image_size: tuple[int, int]) -> None:
  """Raises a UserError that names the first field that does not fit."""
  sizes = zip(config.patch_size, image_size, strict=True)
  for field, valid, expected in (
    ('patch_size', all(p <= s for p, s in sizes), f'at most {image_size}'),
    ('pool', config.pool in POOLS, f'one of {POOLS}'),
    ('norm', config.norm == 'pre', "'pre'"),
    ('positions', config.positions in POSITIONS, f'one of {POSITIONS}'),
  ):
    stack.require(config, field, valid, expected)
  stack.check(config)


class MapHead(nnx.Module):
  """Pools by attention from one learned probe (Zhai et al. 2022)."""

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    init, dtype = nnx.initializers, jnp.dtype(config.param_dtype)
    self.probe = nnx.Param(
      init.xavier_uniform()(rngs.params(), (1, 1, config.width), dtype)
    )
    self.attention = attention.Attention(config, qk_norm=False, rngs=rngs)
    self.norm = norms.layer_norm(config, config.width, rngs=rngs)
    self.mlp = mixtures.make_mlp(config, config.mlp_dim, rngs)

  def __call__(self, x: Float[Array, 'b n d']) -> Float[Array, 'b d']:
    """Returns one vector an image."""
    probe = jnp.zeros_like(x[:, :1]) + self.probe[...].astype(x.dtype)
    y, _ = self.attention(probe, x)
    return (y + self.mlp(self.norm(y)))[:, 0]


def sigmoid_head_bias(num_classes: int) -> float:
  """Returns the head's starting bias under the sigmoid loss."""
  return -math.log(num_classes)
