"""Decoder-only transformer: the next token from those before it.

Pre-norm blocks, any of them with an MoE layer, under causal attention; learned
or rotary positions; a final LayerNorm; a head that may be the embedding.

Axes: `b` examples, `n` tokens, `d` width, `v` vocabulary.
"""

from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.models import blocks, mixtures, norms, stack, vocabulary
from softmoe.models.config import DecoderConfig, TextConfig
from softmoe.moe import routing


class Decoder(nnx.Module):
  """Tokens in, what the head sees of each out; `logits` and `losses` go on."""

  def __init__(self, config: DecoderConfig, *, length: int, rngs: nnx.Rngs):
    """Creates the parameters.

    Args:
      config: sizes, types and MoE blocks.
      length: number of learned positions.
      rngs: source of the parameters' keys.

    Raises:
      UserError: sizes that do not fit together, or a router that is not causal.
    """
    check(config)
    stack.require(config, 'norm', config.norm == 'pre', "'pre'")
    self.config = config
    self.vocabulary = vocabulary.Vocabulary(config, rngs=rngs)
    self.positions = vocabulary.Positions(config, length, rngs=rngs)
    self.blocks = nnx.List(stack.make_blocks(config, rngs))
    self.norm = norms.layer_norm(config, config.width, rngs=rngs)
    if not config.allow_noncausal:
      check_causal(config)

  def __call__(
    self,
    tokens: Int[Array, 'b n'],
    key: blocks.Key = None,
    *,
    mask: Bool[Array, 'b n'] | None = None,
    segments: Int[Array, 'b n'] | None = None,
    positions: Int[Array, 'b n'] | None = None,
    caches: Any = None,
    router_options: dict[str, Any] | None = None,
  ) -> tuple[Float[Array, 'b n d'], dict[str, Any], Any]:
    """Returns what the head sees, the MoE blocks' `aux`, and the caches.

    Args:
      tokens: places in the vocabulary.
      key: for dropout and routing noise; None at evaluation.
      mask: False where a token only fills up: it reaches no expert.
      segments: documents by number; no token reads another document's.
      positions: of each token in its document; None: from the start of the
        example, or on from what the caches hold. With caches, the place of each
        must be below `length` where positions are learned.
      caches: of `init_caches`, or as the last call returned them.
      router_options: further arguments of the routers' calls, by name.
    """
    keys = [None] * 2 if key is None else list(jax.random.split(key))
    start = 0 if caches is None else length_of(caches)
    x = self.positions(self.vocabulary.embed(tokens), positions, start)
    if self.config.dropout:
      x = blocks.dropout(x, self.config.dropout, keys[0], x.shape)
    x, aux, caches = stack.apply_blocks(
      self.blocks,
      self.config,
      x,
      keys[1],
      caches=caches,
      mask=mask,
      token_ids=tokens,
      router_options=router_options,
      causal=True,
      segments=segments,
      positions=positions,
    )
    return sharding.gather(self.norm)(x), aux, caches

  def logits(self, x: Float[Array, 'b n d']) -> Float[Array, 'b n v']:
    """Returns the float32 logits of the token after each."""
    return self.vocabulary.logits(x)

  def losses(
    self, x: Float[Array, 'b n d'], targets: Int[Array, 'b n']
  ) -> vocabulary.Losses:
    """Returns the losses; see `Vocabulary.losses`."""
    return self.vocabulary.losses(x, targets)

  def init_caches(self, tokens: Int[Array, 'b n'], length: int) -> Any:
    """Returns empty caches for `length` tokens of examples such as these.

    Raises:
      UserError: there are not so many positions.
    """
    self.positions.check(length)
    caches = stack.init_caches(self.config, len(tokens), length)
    return stack.place_caches(caches, tokens, self.config)


def check(config: TextConfig) -> None:
  """Raises a UserError that names the first field that does not fit."""
  stack.require(config, 'vocab_size', config.vocab_size >= 1, 'at least 1')
  stack.check(config)


def check_causal(config: DecoderConfig) -> None:
  """Raises a UserError if a token may depend on a later one."""
  if config.moe.blocks:
    # One of its own: those of a `scan` are stacked.
    make = lambda: mixtures.make_router(config, nnx.Rngs(0))
    jax.eval_shape(lambda: _check_causal(config, make()))


def _check_causal(config: DecoderConfig, router: routing.Router) -> None:
  if getattr(router, 'causal', False):
    return
  why = 'its slots mix the tokens of a whole group'
  token = jax.ShapeDtypeStruct((1, config.width), jnp.float32)
  if isinstance(routing.traced(router, token), routing.Assignment):
    why = 'which tokens an expert keeps depends on all tokens of a group'
  raise UserError(
    'config.model.moe.router',
    config.moe.router,
    f'a causal router, since here a token would see later ones: {why}; '
    '--config.model.allow_noncausal takes it nevertheless',
  )


def length_of(caches: Any) -> Int[Array, '']:
  """Returns how many tokens the caches hold."""
  return jnp.max(caches[0].attention.length)  # of a scan: one of each block
