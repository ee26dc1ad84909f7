"""Vision transformer, plain or with MoE blocks.

The AugReg line of ViT (https://arxiv.org/abs/2106.10270): pre-norm blocks,
learned position embedding, final LayerNorm before the pooling.

Axes: `b` images, `n` tokens, `d` width, `c` classes.
"""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.models import blocks, mixtures, patches
from softmoe.models import config as config_lib
from softmoe.moe.execution import run as execution

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
POOLS = ('gap', 'token', 'map')
DTYPES = ('float32', 'bfloat16', 'float16')


def variant(name: str) -> dict[str, Any]:
  """Returns the `ViTConfig` fields of a size and patch, such as 'S/16'.

  Raises:
    UserError: the name is not of the form SIZE/PATCH with a known size.
  """
  size, _, patch = name.partition('/')
  if size not in SIZES or not patch.isdigit() or not int(patch):
    raise UserError('variant', name, f'SIZE/PATCH, SIZE one of {list(SIZES)}')
  fields = ('width', 'depth', 'mlp_dim', 'num_heads')
  return dict(zip(fields, SIZES[size], strict=True)) | {
    'patch_size': (int(patch), int(patch))
  }


def last_half(depth: int) -> tuple[int, ...]:
  """Returns the indices of the blocks that the paper makes MoE."""
  return tuple(range(depth // 2, depth))


@dataclasses.dataclass(frozen=True)
class ViTConfig(config_lib.TransformerConfig):
  """A vision transformer; `variant('S/16')` fills the sizes."""

  patch_size: tuple[int, int] = (16, 16)
  pool: str = 'gap'  # 'gap', 'token' or 'map'
  representation_size: int = 0  # width of the tanh pre-logits layer; 0: none


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
      num_classes: width of the logits.
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
    self.blocks = nnx.List(make_blocks(config, rngs))
    self.norm = blocks.layer_norm(config, config.width, rngs=rngs)
    self.map_head = MapHead(config, rngs=rngs) if config.pool == 'map' else None
    options = dict(param_dtype=jnp.dtype(config.param_dtype), rngs=rngs)
    representation, dtype = config.representation_size, jnp.dtype(config.dtype)
    self.pre_logits = (
      nnx.Linear(config.width, representation, dtype=dtype, **options)
      if representation
      else None
    )
    self.head = nnx.Linear(
      representation or config.width,
      num_classes,
      kernel_init=nnx.initializers.zeros,
      bias_init=nnx.initializers.constant(head_bias),
      dtype=jnp.float32,
      **options,
    )

  def __call__(
    self,
    images: Float[Array, 'b height width channels'],
    key: blocks.Key = None,
    mask: Bool[Array, ' b'] | None = None,
  ) -> tuple[Float[Array, 'b c'], dict[str, Any]]:
    """Returns float32 logits and the MoE blocks' losses and metrics.

    Args:
      images: pixel values in the range the model was trained on.
      key: for dropout, drop path and routing noise; None at evaluation.
      mask: False where an image only fills the batch up: routers leave it out.
    """
    representation, aux = self.represent(images, key, mask)
    return sharding.gather(self.head)(representation), aux

  def represent(
    self,
    images: Float[Array, 'b height width channels'],
    key: blocks.Key = None,
    mask: Bool[Array, ' b'] | None = None,
  ) -> tuple[Float[Array, 'b d'], dict[str, Any]]:
    """Returns what the head sees: the pooled, normalised tokens, and `aux`."""
    keys = [None] * 2 if key is None else list(jax.random.split(key))
    dtype = jnp.dtype(self.config.dtype)
    x = sharding.gather(self.patches, dtype)(images)
    if self.config.dropout:
      x = blocks.dropout(x, self.config.dropout, keys[0], x.shape)
    x, aux = self._apply_blocks(x, keys[1], mask)
    x = self._pool(sharding.gather(self.norm)(x))
    if self.pre_logits is not None:
      x = jnp.tanh(sharding.gather(self.pre_logits, dtype)(x))
    return x, aux

  def _pool(self, x: Float[Array, 'b n d']) -> Float[Array, 'b d']:
    if self.map_head is not None:
      dtype = jnp.dtype(self.config.dtype)
      return sharding.gather(self.map_head, dtype)(x)
    return x[:, 0] if self.config.pool == 'token' else jnp.mean(x, axis=1)

  def _apply_blocks(
    self,
    x: Float[Array, 'b n d'],
    key: blocks.Key,
    mask: Bool[Array, ' b'] | None,
  ) -> tuple[Float[Array, 'b n d'], dict[str, Any]]:
    """Runs the blocks in order, a stack of equal ones by one `scan`."""
    rates, keys = self._drop_path_rates(), self._block_keys(key)
    part = lambda values, i: None if values is None else values[i]
    apply = self._checkpoint(
      lambda block, x, rate, key: block(x, rate, key, mask)
    )
    auxes, start = [], 0
    for block, (_, length) in zip(self.blocks, runs(self.config), strict=True):
      stop = start + length
      if self.config.scan:
        span = slice(start, stop)
        x, aux = jax.lax.scan(
          lambda x, per_block: apply(per_block[0], x, *per_block[1:]),
          x,
          (block, part(rates, span), part(keys, span)),
        )
      else:
        x, aux = apply(block, x, part(rates, start), part(keys, start))
        aux = jax.tree.map(lambda v: v[None], aux)
      auxes += [aux] if aux else []
      start = stop
    return x, merge_aux(auxes)

  def _checkpoint(self, apply: Callable) -> Callable:
    """Returns `apply`, whose backward pass finds no more than it should."""
    if self.config.remat:
      # Of a block no more than what it would take another exchange to have.
      policy = jax.checkpoint_policies.save_only_these_names(
        execution.EXCHANGED
      )
    elif sharding.axis_size('fsdp') > 1:
      policy = sharding.keep_parts
    else:
      return apply
    return jax.checkpoint(
      apply, prevent_cse=not self.config.scan, policy=policy
    )

  def _drop_path_rates(self) -> Float[Array, ' depth'] | None:
    rate = self.config.drop_path
    return jnp.linspace(0.0, rate, self.config.depth) if rate else None

  def _block_keys(self, key: blocks.Key):
    return None if key is None else jax.random.split(key, self.config.depth)


def merge_aux(auxes: list[dict[str, Any]]) -> dict[str, Any]:
  """Sums the blocks' losses and averages their metrics."""
  if not auxes:
    return {'losses': {}, 'metrics': {}}
  stacked = jax.tree.map(lambda *v: jnp.concatenate(v), *auxes)
  return {
    'losses': jax.tree.map(jnp.sum, stacked['losses']),
    'metrics': jax.tree.map(jnp.mean, stacked['metrics']),
  }


def runs(config: ViTConfig) -> list[tuple[bool, int]]:
  """Returns (is MoE, number of blocks) of each entry of `ViT.blocks`.

  With `scan`, neighbours of one kind share an entry.
  """
  kinds = [i in config.moe.blocks for i in range(config.depth)]
  if not config.scan:
    return [(kind, 1) for kind in kinds]
  return [(kind, len(list(g))) for kind, g in itertools.groupby(kinds)]


def make_blocks(config: ViTConfig, rngs: nnx.Rngs) -> list[blocks.Block]:
  """Creates the blocks; block i has the same parameters, stacked or not."""
  keys = jax.random.split(rngs.params(), config.depth)
  made, start = [], 0
  for moe, length in runs(config):
    create = lambda key, moe=moe: blocks.Block(
      config, moe=moe, rngs=nnx.Rngs(key)
    )
    if config.scan:
      made.append(jax.vmap(create)(keys[start : start + length]))
    else:
      made.append(create(keys[start]))
    start += length
  return made


def check(config: ViTConfig, image_size: tuple[int, int]) -> None:
  """Raises a UserError that names the first field that does not fit."""
  moe, heads, last = config.moe, config.num_heads, config.depth - 1
  sizes = zip(config.patch_size, image_size, strict=True)
  for field, valid, expected in (
    ('patch_size', all(1 <= p <= s for p, s in sizes), f'1 to {image_size}'),
    ('width', config.width >= 1, 'at least 1'),
    ('depth', config.depth >= 1, 'at least 1'),
    ('mlp_dim', config.mlp_dim >= 1, 'at least 1'),
    (
      'num_heads',
      heads >= 1 and config.width % heads == 0,
      f'a divisor of the width, {config.width}',
    ),
    ('pool', config.pool in POOLS, f'one of {POOLS}'),
    ('representation_size', config.representation_size >= 0, '0 or more'),
    ('dropout', 0 <= config.dropout < 1, 'in [0, 1)'),
    ('drop_path', 0 <= config.drop_path < 1, 'in [0, 1)'),
    ('dtype', config.dtype in DTYPES, f'one of {DTYPES}'),
    ('param_dtype', config.param_dtype in DTYPES, f'one of {DTYPES}'),
    ('moe.blocks', all(0 <= i <= last for i in moe.blocks), f'in 0..{last}'),
    ('moe.num_experts', moe.num_experts >= 1, 'at least 1'),
  ):
    if not valid:
      given = operator.attrgetter(field)(config)
      raise UserError(f'config.model.{field}', given, expected)
  if moe.blocks:
    mixtures.check(moe)


class MapHead(nnx.Module):
  """Pools by attention from one learned probe (Zhai et al. 2022)."""

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    init, dtype = nnx.initializers, jnp.dtype(config.param_dtype)
    self.probe = nnx.Param(
      init.xavier_uniform()(rngs.params(), (1, 1, config.width), dtype)
    )
    self.attention = blocks.Attention(config, qk_norm=False, rngs=rngs)
    self.norm = blocks.layer_norm(config, config.width, rngs=rngs)
    self.mlp = mixtures.make_mlp(config, config.mlp_dim, rngs)

  def __call__(self, x: Float[Array, 'b n d']) -> Float[Array, 'b d']:
    """Returns one vector an image."""
    probe = jnp.zeros_like(x[:, :1]) + self.probe[...].astype(x.dtype)
    y = self.attention(probe, x)
    return (y + self.mlp(self.norm(y)))[:, 0]


def sigmoid_head_bias(num_classes: int) -> float:
  """Returns the head's starting bias under the sigmoid loss."""
  return -math.log(num_classes)
