"""Contrastive losses over the global batch, on any mesh.

Every image meets every text of the batch, those of other devices too. The
result is a loss for each example, split as the batch is; their mean is the loss
of the papers.

Axes: `b` examples of the batch, `l` those of a device, `z` width.
"""

from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from softmoe.moe import part as part_lib

Pairs = tuple[Array, Array, Array]  # images, texts, 1 for an example


def sigmoid(
  images: Float[Array, 'b z'],
  texts: Float[Array, 'b z'],
  real: Float[Array, ' b'],
  log_scale: Float[Array, ''],
  bias: Float[Array, ''],
) -> Float[Array, ' b']:
  """Returns the loss of SigLIP: is this text that of this image?

  Zhai et al., 2023, https://arxiv.org/abs/2303.15343, and their chunked
  computation: texts go around the devices, so that a device holds the l x l
  pairs of its images and of the texts of one device at a time, in the backward
  pass too.

  Args:
    images: of length 1.
    texts: of length 1; text i belongs to image i.
    real: 1 for an example, 0 for one that only fills up.
    log_scale: log of what cosines are multiplied by.
    bias: what is added then.
  """
  return _over_devices(_sigmoid, (log_scale, bias), (images, texts, real))


def softmax(
  images: Float[Array, 'b z'],
  texts: Float[Array, 'b z'],
  real: Float[Array, ' b'],
  log_scale: Float[Array, ''],
) -> Float[Array, ' b']:
  """Returns the loss of CLIP and LiT: which text, and which image, is it?

  Radford et al., 2021, https://arxiv.org/abs/2103.00020: the mean of the
  cross-entropy over all texts for an image, and over all images for a text.
  Every device gathers all images and texts.

  Args:
    images: as in `sigmoid`, and so are the others.
    texts: of length 1; text i belongs to image i.
    real: 1 for an example, 0 for one that only fills up.
    log_scale: log of what cosines are multiplied by.
  """
  return _over_devices(_softmax, (log_scale,), (images, texts, real))


def _over_devices(
  loss: Any, parameters: tuple[Array, ...], pairs: Pairs
) -> Float[Array, ' b']:
  """Returns the loss of each example, where the examples are."""

  def local(part: part_lib.Part, *arguments: Any) -> Any:
    return part.merge(loss(part, *arguments)), ()

  types = (None,) * len(parameters)
  return part_lib.run(local, parameters, types, pairs)[0]


def _sigmoid(
  part: part_lib.Part, log_scale: Array, bias: Array, pairs: Pairs
) -> Float[Array, ' l']:
  images, texts, real = pairs
  scale = jnp.exp(log_scale)

  @jax.checkpoint
  def apart(texts: Array, real: Array) -> Array:
    """Returns each image's loss if none of these texts belonged to it."""
    logits = scale * jnp.einsum('iz,tz->it', images, texts) + bias
    return jnp.sum(jax.nn.softplus(logits) * real[None], axis=1)

  def step(carry: Any, _: None) -> Any:
    total, passing = carry
    passing = jax.tree.map(part.to_next, passing)
    return (total + apart(*passing), passing), None

  start = apart(texts, real), (texts, real)
  (total, _), _ = lax.scan(step, start, length=part.parts - 1)
  # One does: softplus(-logit) = softplus(logit) - logit.
  return total - (scale * jnp.sum(images * texts, axis=1) + bias)


def _softmax(
  part: part_lib.Part, log_scale: Array, pairs: Pairs
) -> Float[Array, ' l']:
  images, texts, _ = pairs
  scale = jnp.exp(log_scale)
  all_images, all_texts, all_real = map(part.collect, pairs)

  def log_total(own: Array, others: Array) -> Array:
    logits = scale * jnp.einsum('iz,tz->it', own, others)
    lowest = jnp.finfo(logits.dtype).min
    return jax.nn.logsumexp(jnp.where(all_real[None] > 0, logits, lowest), 1)

  both = log_total(images, all_texts) + log_total(texts, all_images)
  return both / 2 - scale * jnp.sum(images * texts, axis=1)
