"""Images to tokens.

Axes: `b` images, `n` tokens, `d` width.
"""

from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float

from softmoe import sharding
from softmoe.models.config import ViTConfig


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
    n = (image_size[0] // ph) * (image_size[1] // pw)
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
