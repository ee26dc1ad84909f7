"""Encoder of texts: tokens in, one vector a text out.

The text tower of LiT and SigLIP (https://arxiv.org/abs/2111.07991,
https://arxiv.org/abs/2303.15343): a pre-norm transformer in which every token
reads every other, of which the last token, EOS, is projected. We depart from
their code in that padding is neither read nor routed. Any block may have an MoE
layer, with any router.

Axes: `b` texts, `n` tokens, `d` width, `z` width of the result.
"""

from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from softmoe import sharding
from softmoe.models import blocks, decoder, norms, stack, vocabulary
from softmoe.models.config import TextConfig


class TextEncoder(nnx.Module):
  """Tokens of a text in, one vector out."""

  def __init__(
    self, config: TextConfig, *, length: int, size: int, rngs: nnx.Rngs
  ):
    """Creates the parameters.

    Args:
      config: sizes, types and MoE blocks.
      length: number of learned positions.
      size: width of the result.
      rngs: source of the parameters' keys.

    Raises:
      UserError: sizes that do not fit together.
    """
    decoder.check(config)
    stack.require(config, 'norm', config.norm == 'pre', "'pre'")
    self.config = config
    self.vocabulary = vocabulary.Embedding(config, rngs=rngs)
    self.positions = vocabulary.Positions(config, length, rngs=rngs)
    self.blocks = nnx.List(stack.make_blocks(config, rngs))
    self.norm = norms.layer_norm(config, config.width, rngs=rngs)
    self.head = nnx.Linear(
      config.width,
      size,
      dtype=jnp.float32,
      param_dtype=jnp.dtype(config.param_dtype),
      rngs=rngs,
    )

  def __call__(
    self,
    tokens: Int[Array, 'b n'],
    mask: Bool[Array, 'b n'],
    key: blocks.Key = None,
    router_options: dict[str, Any] | None = None,
  ) -> tuple[Float[Array, 'b z'], dict[str, Any]]:
    """Returns a float32 vector a text, and the MoE blocks' `aux`.

    Args:
      tokens: places in the vocabulary, EOS the last of each text.
      mask: False where a token only fills up.
      key: for dropout and routing noise; None at evaluation.
      router_options: further arguments of the routers' calls, by name.
    """
    keys = [None] * 2 if key is None else list(jax.random.split(key))
    x = self.positions(self.vocabulary.embed(tokens))
    if self.config.dropout:
      x = blocks.dropout(x, self.config.dropout, keys[0], x.shape)
    x, aux, _ = stack.apply_blocks(
      self.blocks,
      self.config,
      x,
      keys[1],
      mask=mask,
      attention_mask=mask,
      token_ids=tokens,
      router_options=router_options,
    )
    x = sharding.gather(self.norm)(_last(x, mask))
    return sharding.gather(self.head)(x), aux


def _last(
  x: Float[Array, 'b n d'], mask: Bool[Array, 'b n']
) -> Float[Array, 'b d']:
  """Returns the last real token of each text; zeros where there is none."""
  last = jnp.sum(mask, axis=1) - 1
  chosen = jax.nn.one_hot(last, x.shape[1], dtype=x.dtype)
  return jnp.einsum('bn,bnd->bd', chosen, x)
