"""Soft routing for autoregression: a segment's slots serve the next segment.

Ours, of no paper. Near it are Lory (Zhong et al., 2024,
https://arxiv.org/abs/2405.03133), which merges experts for a segment by what
the one before it holds, and Mixture of Tokens (Antoniak et al., 2023,
https://arxiv.org/abs/2310.15961), which mixes tokens of several examples.
"""

import jax
from flax import nnx
from jax import numpy as jnp

from softmoe.moe.routers import gating, soft


class SegmentSoft(soft.SoftRouter):
  """Soft MoE's router (Algorithm 1), one segment of an example at a time.

  An example is cut into segments of `segment` tokens, the last one filled up.
  Slots are means of one segment's tokens, experts run on them, and the tokens
  of the next segment combine what came out, by weights of their own. The first
  segment gets 0. So no token's output depends on its own segment, which it
  sees through a shared expert (`MoE(shared=...)`) and attention alone, or on a
  later one: causal by construction, at the cost of Soft MoE.

  What the router says of a group is what `SoftRouter` says; the attribute
  `segment` tells the layer to cut and to hand outputs on: see `moe.pieces`,
  also for documents. Decoding goes on from `MoE.init_cache`.
  """

  causal = True

  def __init__(
    self,
    width: int,
    num_experts: int,
    slots_per_expert: int = 1,
    *,
    segment: int,
    scale_init: float = 1.0,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the slots' parameters.

    Args:
      width: of the tokens.
      num_experts: experts.
      slots_per_expert: slots of each, for every segment.
      segment: tokens of a segment.
      scale_init: start of the logits' scale; see `SoftRouter`.
      param_dtype: of the parameters.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: an argument is out of its range.
    """
    gating.require(segment >= 1, 'segment', segment, 'at least 1')
    self.segment = segment
    super().__init__(
      width,
      num_experts,
      slots_per_expert,
      scale_init=scale_init,
      param_dtype=param_dtype,
      rngs=rngs,
    )
