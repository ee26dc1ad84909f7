"""Two towers: images and texts as directions in one space.

As in LiT (https://arxiv.org/abs/2111.07991) and the contrastive models of Soft
MoE (https://arxiv.org/abs/2308.00951, section 4): the pooled representation of
a ViT without a head, to whose width the texts are projected.

Axes: `b` examples, `n` tokens, `z` width of the representation.
"""

import math
from typing import Any

from flax import nnx
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from softmoe.errors import naming
from softmoe.models import blocks, text_encoder, vit
from softmoe.models.config import TextConfig, ViTConfig

# At the start, as in SigLIP (https://arxiv.org/abs/2303.15343).
_SCALE, _BIAS = 10.0, -10.0


class TwoTower(nnx.Module):
  """Images and texts in, vectors of length 1 out.

  Attributes:
    image: the tower of images.
    text: the tower of texts.
    log_scale: log of what the cosine of an image and a text is multiplied by.
    bias: what is added then; None: nothing is.
  """

  def __init__(
    self,
    image: ViTConfig,
    text: TextConfig,
    *,
    image_size: tuple[int, int],
    channels: int,
    length: int,
    with_bias: bool,
    rngs: nnx.Rngs,
  ):
    """Creates the parameters.

    Args:
      image: config of the tower of images.
      text: config of the tower of texts.
      image_size: height and width in pixels.
      channels: of an image.
      length: number of learned positions of a text.
      with_bias: whether a bias is learned, as the sigmoid loss needs it.
      rngs: source of the parameters' keys.

    Raises:
      UserError: sizes that do not fit together.
    """
    self.image = vit.ViT(
      image,
      image_size=image_size,
      channels=channels,
      num_classes=0,
      rngs=rngs,
    )
    with naming({'config.model.': 'config.text.'}):
      self.text = text_encoder.TextEncoder(
        text, length=length, size=vit.size(image), rngs=rngs
      )
    self.log_scale = nnx.Param(jnp.float32(math.log(_SCALE)))
    self.bias = nnx.Param(jnp.float32(_BIAS)) if with_bias else None

  def embed_images(
    self,
    images: Float[Array, 'b height width channels'],
    key: blocks.Key = None,
    mask: Bool[Array, ' b'] | None = None,
    router_options: dict[str, Any] | None = None,
  ) -> tuple[Float[Array, 'b z'], dict[str, Any]]:
    """Returns float32 directions and `aux`; arguments are those of `ViT`."""
    x, aux = self.image.represent(images, key, mask, router_options)
    return _direction(x), aux

  def embed_texts(
    self,
    tokens: Int[Array, 'b n'],
    mask: Bool[Array, 'b n'],
    key: blocks.Key = None,
    router_options: dict[str, Any] | None = None,
  ) -> tuple[Float[Array, 'b z'], dict[str, Any]]:
    """Returns float32 directions and `aux`; see `TextEncoder`."""
    x, aux = self.text(tokens, mask, key, router_options)
    return _direction(x), aux


def _direction(x: Float[Array, 'b z']) -> Float[Array, 'b z']:
  """Returns vectors of length 1; of 0 there is none, and it stays."""
  x = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * lax.rsqrt(jnp.maximum(square, 1e-24))
