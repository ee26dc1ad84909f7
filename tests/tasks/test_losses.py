"""Losses against numpy, mixup on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softmoe.errors import UserError
from softmoe.tasks import losses

P = jax.P
BATCH = P(('data', 'expert'))


def make_batch():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(16, 5)).astype('f')
  labels = rng.dirichlet(np.ones(5), size=16).astype('f')
  return jnp.asarray(logits), jnp.asarray(labels)


def test_softmax_is_the_negative_log_likelihood():
  logits, labels = make_batch()
  p = np.exp(np.asarray(logits, 'd'))
  log_p = np.log(p / p.sum(-1, keepdims=True))
  loss = losses.cross_entropy('softmax')(logits, labels)
  np.testing.assert_allclose(loss, -(labels * log_p).sum(-1), rtol=1e-6)


def test_sigmoid_is_summed_over_classes():
  logits, labels = make_batch()
  p = 1 / (1 + np.exp(-np.asarray(logits, 'd')))
  terms = labels * np.log(p) + (1 - labels) * np.log(1 - p)
  loss = losses.cross_entropy('sigmoid')(logits, labels)
  np.testing.assert_allclose(loss, -terms.sum(-1), rtol=1e-6)


@pytest.mark.parametrize('name', ['softmax', 'sigmoid'])
def test_bfloat16_logits_are_computed_in_float32(name):
  logits, labels = make_batch()
  logits = logits.astype(jnp.bfloat16)
  loss = losses.cross_entropy(name)(logits, labels)
  expected = losses.cross_entropy(name)(logits.astype(jnp.float32), labels)
  assert loss.dtype == jnp.float32
  np.testing.assert_array_equal(loss, expected)


@pytest.mark.parametrize('name', ['softmax', 'sigmoid'])
def test_large_logits_stay_finite(name):
  logits = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
  labels = jnp.array([[0.0, 1.0], [0.0, 1.0]])
  loss = losses.cross_entropy(name)(logits, labels)
  np.testing.assert_allclose(loss, [2e4, 0], atol=1e-6)


def test_unknown_loss():
  with pytest.raises(UserError, match='config.loss'):
    losses.cross_entropy('hinge')


def test_soft_labels():
  labels = losses.soft_labels(jnp.array([2, 0]), 4, 0.2)
  expected = [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]
  np.testing.assert_allclose(labels, expected, rtol=1e-6)


def test_soft_labels_without_smoothing_are_one_hot():
  labels = losses.soft_labels(jnp.array([1, 2]), 3)
  np.testing.assert_array_equal(labels, [[0, 1, 0], [0, 0, 1]])


def test_mixup_mixes_each_example_with_its_predecessor():
  """Images 0..7 and one-hot labels show the partner and its share."""
  images = jnp.arange(8.0).reshape(8, 1, 1, 1)
  mixed, labels = losses.mixup(jax.random.key(1), images, jnp.eye(8), 1.0)
  share = labels[0, 0]
  assert 0.5 < share < 1
  expected = share * np.eye(8) + (1 - share) * np.roll(np.eye(8), 1, axis=0)
  np.testing.assert_allclose(labels, expected, rtol=1e-6)
  partner = np.roll(np.arange(8), 1)
  expected = share * np.arange(8) + (1 - share) * partner
  np.testing.assert_allclose(mixed.ravel(), expected, rtol=1e-6)


def test_mixup_share_is_a_folded_beta():
  """E max(u, 1 - u) = 3/4 for u from Beta(1, 1), the uniform distribution."""

  def share(key):
    labels = losses.mixup(key, jnp.zeros((2, 1, 1, 1)), jnp.eye(2), 1.0)[1]
    return labels[0, 0]

  shares = jax.jit(jax.vmap(share))(jax.random.split(jax.random.key(0), 2000))
  assert shares.min() >= 0.5
  standard_error = (1 / 48 / 2000) ** 0.5
  assert abs(shares.mean() - 0.75) < 4 * standard_error


def soften_and_mix(mesh_shape):
  """Returns images and labels as a train step would make them, on a mesh."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(16, 4, 4, 1)).astype('f')
  labels = rng.integers(0, 10, 16)

  @jax.jit
  def mix(key, images, labels):
    labels = losses.soft_labels(labels, 10, 0.1)
    return losses.mixup(key, images, labels, 0.2)

  devices = jax.devices()[: np.prod(mesh_shape)]
  mesh = jax.make_mesh(mesh_shape, ('data', 'expert'), devices=devices)
  with jax.set_mesh(mesh):
    batch = jax.device_put((images, labels), BATCH)
    return mix(jax.random.key(0), *batch)


def test_mixup_is_the_same_on_one_device_and_on_eight():
  one, eight = soften_and_mix((1, 1)), soften_and_mix((2, 4))
  for a, b in zip(one, eight, strict=True):
    assert b.sharding.spec[0] == ('data', 'expert')
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name', ['softmax', 'sigmoid'])
def test_losses_of_a_sharded_batch(name):
  logits, labels = make_batch()
  expected = losses.cross_entropy(name)(logits, labels)
  mesh = jax.make_mesh((2, 4), ('data', 'expert'))
  with jax.set_mesh(mesh):
    batch = jax.device_put((logits, labels), BATCH)
    loss = jax.jit(losses.cross_entropy(name))(*batch)
    assert loss.sharding.spec == BATCH
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
