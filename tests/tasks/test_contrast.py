"""Contrastive losses against loops, on one device and on eight."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from softmoe import sharding
from softmoe.tasks import contrast

B, Z, REAL = 16, 5, 13
PARAMETERS = {'sigmoid': (1.2, -1.5), 'softmax': (1.2,)}


def make_pairs():
  rng = np.random.default_rng(0)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  images, texts = (unit(rng.normal(size=(B, Z))).astype('f') for _ in range(2))
  return images, texts, (np.arange(B) < REAL).astype('f')


def sigmoid(images, texts, log_scale, bias):
  """Returns the loss of each pair, by the definition."""
  losses = []
  for i, image in enumerate(images):
    total = 0.0
    for j, text in enumerate(texts):
      logit = np.exp(log_scale) * image @ text + bias
      total += np.log1p(np.exp(-logit if i == j else logit))
    losses.append(total)
  return losses


def softmax(images, texts, log_scale):
  losses = []
  for i in range(len(images)):
    rows = [np.exp(np.exp(log_scale) * images[i] @ text) for text in texts]
    columns = [np.exp(np.exp(log_scale) * image @ texts[i]) for image in images]
    shares = rows[i] / sum(rows), columns[i] / sum(columns)
    losses.append(-np.mean(np.log(shares)))
  return losses


LOOPS = {'sigmoid': sigmoid, 'softmax': softmax}


@pytest.mark.parametrize('name', LOOPS)
def test_it_is_that_of_a_loop_and_padding_counts_for_nothing(name):
  images, texts, real = make_pairs()
  wide = [x[:REAL].astype('d') for x in (images, texts)]
  expected = LOOPS[name](*wide, *PARAMETERS[name])
  arrays = map(jnp.asarray, (images, texts, real))
  parameters = map(jnp.float32, PARAMETERS[name])
  found = getattr(contrast, name)(*arrays, *parameters)
  np.testing.assert_allclose(found[:REAL], expected, rtol=1e-5)


@pytest.mark.parametrize('name', LOOPS)
def test_large_logits_stay_finite(name):
  images, texts, real = map(jnp.asarray, make_pairs())
  parameters = (jnp.float32(9.0), jnp.float32(-1e4))[: len(PARAMETERS[name])]
  loss = getattr(contrast, name)
  mean = lambda *pairs: jnp.mean(loss(*pairs, real, *parameters))
  found = jax.value_and_grad(mean, argnums=(0, 1))(images, texts)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def lowered(name):
  """Returns the gradient on the mesh in force, and its arguments."""
  place = lambda x: jax.device_put(x, sharding.batch_spec())
  images, texts, real = map(place, make_pairs())
  parameters = tuple(map(jnp.float32, PARAMETERS[name]))

  def mean(images, texts, *parameters):
    losses = getattr(contrast, name)(images, texts, real, *parameters)
    assert jax.typeof(losses).sharding.spec == sharding.batch_spec()
    return jnp.sum(losses * real) / jnp.sum(real)

  arguments = images, texts, *parameters
  every = tuple(range(len(arguments)))
  return jax.jit(jax.value_and_grad(mean, every)).lower(*arguments), arguments


@functools.cache
def alone(name):
  with jax.set_mesh(sharding.one_device_mesh()):
    program, arguments = lowered(name)
    return jax.device_get(program.compile()(*arguments))


@pytest.mark.parametrize('name', LOOPS)
@pytest.mark.parametrize('sizes', [(2, 4, 1), (2, 2, 2)], ids=str)
def test_eight_devices_have_the_loss_and_gradients_of_one(mesh, name, sizes):
  expected = alone(name)
  mesh(*sizes)
  program, arguments = lowered(name)
  found = program.compile()(*arguments)
  compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(compare, jax.device_get(found), expected)


def test_texts_go_around_and_no_device_has_all_pairs(mesh):
  mesh(2, 2, 2)
  text = lowered('sigmoid')[0].compile().as_text()
  assert 'collective-permute' in text and 'all-gather' not in text
  part = B // 8
  assert f'f32[{part},{part}]' in text
  for rows in (part, B):
    assert f'f32[{rows},{B}]' not in text and f'f32[{B},{rows}]' not in text
