"""Classification losses, and the softening of labels that goes with them.

Axes: `b` batch, `c` classes, `h w` height and width in pixels, `d` channels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from softmoe.errors import UserError


def cross_entropy(name: str) -> Callable[[Array, Array], Array]:
  """Returns the loss `name`: (logits (b, c), labels (b, c)) -> (b,).

  Labels are shares of each class: one-hot, smoothed or mixed. The loss is
  computed in float32 whatever the type of the logits.

  Args:
    name: 'softmax', over classes that exclude each other; or 'sigmoid', a
      binary cross-entropy for each class, summed over the classes.

  Raises:
    UserError: the name is unknown.
  """
  if name not in _LOSSES:
    raise UserError('config.loss', name, f'one of {sorted(_LOSSES)}')
  return _LOSSES[name]


def soft_labels(
  labels: Int[Array, 'b'], num_classes: int, smoothing: float = 0.0
) -> Float[Array, 'b c']:
  """Returns one-hot labels, `smoothing` of each spread over all classes.

  Label smoothing as in Szegedy et al. 2016, section 7
  (https://arxiv.org/abs/1512.00567).
  """
  one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  return (1 - smoothing) * one_hot + smoothing / num_classes


def mixup(
  key: PRNGKeyArray,
  images: Float[Array, 'b h w d'],
  labels: Float[Array, 'b c'],
  alpha: float,
) -> tuple[Float[Array, 'b h w d'], Float[Array, 'b c']]:
  """Returns each example mixed with the one before it in the batch.

  Mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412) with one share a
  batch, drawn from Beta(alpha, alpha) and folded to [0.5, 1], so that the
  example itself always outweighs its partner.

  Args:
    key: random key.
    images: the batch axis may be sharded.
    labels: shares of each class, sharded as the images are.
    alpha: above 0; the larger, the stronger the mixing.
  """
  share = jax.random.beta(key, alpha, alpha)
  share = jnp.maximum(share, 1 - share)

  def mix(x):
    return share * x + (1 - share) * _roll(x)

  return mix(images), mix(labels)


def _roll(x: Array) -> Array:
  """Returns `x` rolled by one along its first axis, sharded as it was."""
  sharding = jax.typeof(x).sharding
  if not sharding.mesh.shape_tuple:
    return jnp.roll(x, 1, axis=0)
  roll: Any = jax.sharding.auto_axes(
    lambda x: jnp.roll(x, 1, axis=0), out_sharding=sharding
  )
  return roll(x)


def _softmax(logits: Float[Array, 'b c'], labels: Float[Array, 'b c']):
  return optax.softmax_cross_entropy(logits.astype(jnp.float32), labels)


def _sigmoid(logits: Float[Array, 'b c'], labels: Float[Array, 'b c']):
  logits = logits.astype(jnp.float32)
  return optax.sigmoid_binary_cross_entropy(logits, labels).sum(axis=-1)


_LOSSES = {'softmax': _softmax, 'sigmoid': _sigmoid}
