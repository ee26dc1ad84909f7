"""Layers of attention, tokens, and who may read whom, for its tests."""

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from softmoe.models import attention
from softmoe.models.config import TransformerConfig
from tests.models import attention_loops as loops

B, N, WIDTH, HEADS = 4, 6, 8, 2
SEGMENTS = np.array([[0, 0, 0, 1, 1, 1]] * 2 + [[0, 1, 1, 2, 2, 2]] * 2)
# The last example has nothing to read, the third nothing in its first document.
MASK = np.array(
  [[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1], [0] * 6], bool
)
CASES = {
  'all': {},
  'mask': dict(mask=MASK),
  'causal': dict(causal=True),
  'mask, causal': dict(mask=MASK, causal=True),
  'segments': dict(segments=SEGMENTS),
  'everything': dict(mask=MASK, causal=True, segments=SEGMENTS),
}


def make(**fields):
  """Returns a layer with parameters of which none is special."""
  config = TransformerConfig(width=WIDTH, num_heads=HEADS, **fields)
  build = lambda: attention.Attention(config, qk_norm=False, rngs=nnx.Rngs(0))
  graphdef, state = nnx.split(nnx.eval_shape(build))
  rng = np.random.default_rng(0)
  draw = lambda w: jnp.asarray(0.7 * rng.normal(size=w.shape), w.dtype)
  params = jax.tree.map(draw, nnx.to_pure_dict(state))
  return config, params, nnx.merge(graphdef, params)


def draw_tokens(n=N, b=B):
  return jax.random.normal(jax.random.key(1), (b, n, WIDTH))


def arrays(arguments):
  of = lambda v: v if isinstance(v, bool) else jnp.asarray(v)
  return {name: of(v) for name, v in arguments.items()}


def sees(b, mask=None, causal=False, segments=None):
  """Returns which queries of example b may read which tokens."""
  return lambda i, j: (
    (mask is None or mask[b, j])
    and not (causal and j > i)
    and (segments is None or segments[b, i] == segments[b, j])
  )


def exact(params, x, arguments):
  """Returns what the layer's tokens read, by loops in float64."""
  params = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
  return [
    loops.layer(params, row, HEADS, sees(b, **arguments))
    for b, row in enumerate(np.asarray(x, np.float64))
  ]
