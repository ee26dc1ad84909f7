"""Encoder-decoder transformer: one sequence into another.

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, with norms before or
after each part of a block, learned or rotary positions, and one vocabulary for
both sides and the head. Any block of either side may have an MoE layer; the
decoder's router has to be causal.

Axes: `b` examples, `m` source tokens, `n` target tokens, `d` width, `v`
vocabulary.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from softmoe import sharding
from softmoe.errors import naming
from softmoe.models import blocks, decoder, norms, stack, vocabulary
from softmoe.models.config import EncoderDecoderConfig


def decoder_config(config: EncoderDecoderConfig) -> EncoderDecoderConfig:
  """Returns the config of the decoder's stack."""
  moe = dataclasses.replace(config.moe, blocks=config.decoder_moe_blocks)
  if not moe.blocks:
    moe = type(moe)()
  depth = config.decoder_depth or config.depth
  return dataclasses.replace(config, depth=depth, moe=moe)


class EncoderDecoder(nnx.Module):
  """Tokens of two sides in, what the head sees of the second out."""

  def __init__(
    self, config: EncoderDecoderConfig, *, length: int, rngs: nnx.Rngs
  ):
    """Creates the parameters.

    Args:
      config: sizes, types and MoE blocks.
      length: number of learned positions of either side.
      rngs: source of the parameters' keys.

    Raises:
      UserError: sizes that do not fit together, or the decoder's router is not
        causal.
    """
    inner = decoder_config(config)
    decoder.check(config)
    with naming({'config.model.moe.blocks': 'config.model.decoder_moe_blocks'}):
      decoder.check(inner)
    self.config, self.decoder_config, self.length = config, inner, length
    self.vocabulary = vocabulary.Vocabulary(config, rngs=rngs)
    self.source = vocabulary.Positions(config, length, rngs=rngs)
    self.target = vocabulary.Positions(config, length, rngs=rngs)
    self.encoder = nnx.List(stack.make_blocks(config, rngs))
    self.decoder = nnx.List(stack.make_blocks(inner, rngs, cross=True))
    norm = lambda: norms.layer_norm(config, config.width, rngs=rngs)
    after = config.norm == 'post'  # the last block's own then
    self.encoder_norm = None if after else norm()
    self.decoder_norm = None if after else norm()
    if not config.allow_noncausal:
      decoder.check_causal(inner)

  def encode(
    self,
    tokens: Int[Array, 'b m'],
    mask: Bool[Array, 'b m'],
    key: blocks.Key = None,
    router_options: dict[str, Any] | None = None,
  ) -> tuple[Float[Array, 'b m d'], dict[str, Any]]:
    """Returns the memory and the MoE blocks' `aux`.

    Args:
      tokens: of the source.
      mask: False where a token only fills up.
      key: for dropout and routing noise; None at evaluation.
      router_options: further arguments of the routers' calls, by name.
    """
    keys = [None] * 2 if key is None else list(jax.random.split(key))
    x = self._embed(self.source, tokens, keys[0])
    x, aux, _ = stack.apply_blocks(
      self.encoder,
      self.config,
      x,
      keys[1],
      mask=mask,
      attention_mask=mask,
      token_ids=tokens,
      router_options=router_options,
    )
    return _last(self.encoder_norm, x), aux

  def decode(
    self,
    tokens: Int[Array, 'b n'],
    memory: Float[Array, 'b m d'] | None,
    memory_mask: Bool[Array, 'b m'],
    key: blocks.Key = None,
    *,
    mask: Bool[Array, 'b n'] | None = None,
    caches: Any = None,
    router_options: dict[str, Any] | None = None,
  ) -> tuple[Float[Array, 'b n d'], dict[str, Any], Any]:
    """Returns what the head sees, the MoE blocks' `aux`, and the caches.

    Args:
      tokens: of the target, each to be followed by the next.
      memory: of `encode`; None: the caches hold what is read of it.
      memory_mask: that of the source.
      key: for dropout and routing noise; None at evaluation.
      mask: False where a token only fills up.
      caches: of `init_caches`, or as the last call returned them.
      router_options: further arguments of the routers' calls, by name.
    """
    keys = [None] * 2 if key is None else list(jax.random.split(key))
    start = 0 if caches is None else decoder.length_of(caches)
    x = self._embed(self.target, tokens, keys[0], start)
    x, aux, caches = stack.apply_blocks(
      self.decoder,
      self.decoder_config,
      x,
      keys[1],
      caches=caches,
      mask=mask,
      token_ids=tokens,
      router_options=router_options,
      causal=True,
      memory=memory,
      memory_mask=memory_mask,
    )
    return _last(self.decoder_norm, x), aux, caches

  def logits(self, x: Float[Array, 'b n d']) -> Float[Array, 'b n v']:
    """Returns the float32 logits of the token after each."""
    return self.vocabulary.logits(x)

  def losses(
    self,
    x: Float[Array, 'b n d'],
    targets: Int[Array, 'b n'],
    smoothing: float = 0.0,
  ) -> vocabulary.Losses:
    """Returns the losses; see `Vocabulary.losses`."""
    return self.vocabulary.losses(x, targets, smoothing)

  def init_caches(self, memory: Float[Array, 'b m d'], length: int) -> Any:
    """Returns caches that hold the memory, with room for `length` tokens.

    Raises:
      UserError: there are not so many positions.
    """
    self.target.check(length)
    config = self.decoder_config
    caches = stack.init_caches(config, len(memory), length)
    caches = stack.place_caches(caches, memory, config)
    return stack.read_memory(self.decoder, config, caches, memory)

  def _embed(self, positions, tokens, key, start=0):
    x = positions(self.vocabulary.embed(tokens), start=start)
    if self.config.dropout:
      x = blocks.dropout(x, self.config.dropout, key, x.shape)
    return x


def _last(norm: Any, x: Float[Array, 'b n d']) -> Float[Array, 'b n d']:
  return x if norm is None else sharding.gather(norm)(x)
