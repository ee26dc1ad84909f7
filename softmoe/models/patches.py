"""Images to tokens.

Axes: `b` images, `n` tokens, `d` width.
"""

import functools

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float

from softmoe import sharding
from softmoe.models.config import ViTConfig


def grid(
  image_size: tuple[int, int], patch_size: tuple[int, int]
) -> tuple[int, int]:
  """Returns the rows and columns of patches; a rest that fills none is left."""
  return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def resize_positions(
  position: Float[Array, '1 n d'], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, '1 n_new d']:
  """Returns position embeddings of one grid of patches for another grid.

  Bilinear in float32, corners on corners, as vmoe and big_vision do it. The
  place of a class token, which comes first, stays as it is.

  Args:
    position: `PatchEmbedding.position`, whole on every device.
    old: rows and columns of its grid.
    new: those that are wanted.
  """
  if old == new:
    return position
  first = position.shape[1] - old[0] * old[1]
  places = jnp.reshape(position[0, first:], (*old, -1)).astype(jnp.float32)
  along = (jnp.linspace(0, m - 1, n) for m, n in zip(old, new, strict=True))
  at = jnp.meshgrid(*along, indexing='ij')
  read = functools.partial(jax.scipy.ndimage.map_coordinates, order=1)
  places = jax.vmap(read, (-1, None), -1)(places, at)
  places = jnp.reshape(places, (1, new[0] * new[1], -1)).astype(position.dtype)
  return jnp.concatenate([position[:, :first], places], axis=1)


class PatchEmbedding(nnx.Module):
  """Patches to tokens, with class token and position embedding.

  Attributes:
    kernel: (patch height, patch width, channels, d), a convolution's layout.
    position: (1, n, d), the class token's place first.
  """

  def __init__(
    self,
    config: ViTConfig,
    image_size: tuple[int, int],
    channels: int,
    *,
    rngs: nnx.Rngs,
  ):
    init, dtype = nnx.initializers, jnp.dtype(config.param_dtype)
    (ph, pw), d = config.patch_size, config.width
    self.dtype = jnp.dtype(config.dtype)
    rows, columns = grid(image_size, config.patch_size)
    n = rows * columns
    self.kernel = nnx.Param(
      init.lecun_normal()(rngs.params(), (ph, pw, channels, d), dtype)
    )
    self.bias = nnx.Param(jnp.zeros((d,), dtype))
    token = config.pool == 'token'
    self.class_token = nnx.Param(jnp.zeros((1, 1, d), dtype)) if token else None
    self.position = nnx.Param(
      init.normal(0.02)(rngs.params(), (1, n + token, d), dtype)
    )

  def __call__(
    self, images: Float[Array, 'b height width channels']
  ) -> Float[Array, 'b n d']:
    """Returns the tokens, row by row of the image."""
    kernel = self.kernel[...].astype(self.dtype)
    ph, pw, channels, width = kernel.shape
    rows, columns = images.shape[1] // ph, images.shape[2] // pw
    images = images[:, : rows * ph, : columns * pw].astype(self.dtype)
    patches = sharding.reshape(images, rows, ph, columns, pw, channels)
    # (b, row, p, column, q, channels) -> (b, row x column, p x q x channels)
    patches = jnp.swapaxes(patches, 2, 3)
    patches = sharding.reshape(patches, rows * columns, ph * pw * channels)
    x = patches @ kernel.reshape(-1, width)
    x = x + self.bias[...].astype(self.dtype)[None, None]
    if self.class_token is not None:
      # Zeros like the tokens give the class token the batch's placement.
      first = jnp.zeros_like(x[:, :1]) + self.class_token[...].astype(x.dtype)
      x = jnp.concatenate([first, x], axis=1)
    return x + self.position[...].astype(self.dtype)
