"""Embedding and loss against NumPy, in chunks and whole, on any mesh."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import sharding
from softmoe.models import config as model_config
from softmoe.models import vocabulary

CONFIG = model_config.DecoderConfig(width=8, vocab_size=11)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 5, 8)).astype(np.float32)
TARGETS = RNG.integers(0, 11, (8, 5)).astype(np.int32)
COTANGENT = RNG.normal(size=(8, 5)).astype(np.float32)


def make(**fields):
  config = dataclasses.replace(CONFIG, **fields)
  return vocabulary.Vocabulary(config, rngs=nnx.Rngs(0))


def in_numpy(head, smoothing):
  """Returns losses, correct, and the gradients of x and the head."""
  losses, correct = np.zeros((2, 8, 5)), np.zeros((8, 5), bool)
  dx, dhead = np.zeros(X.shape), np.zeros(head.shape)
  for at in np.ndindex(8, 5):
    logits = head.astype(np.float64) @ X[at]
    logs = logits - np.log(np.sum(np.exp(logits)))
    label = np.full(11, smoothing / 11)
    label[TARGETS[at]] += 1 - smoothing
    losses[:, *at] = -logs[TARGETS[at]], -label @ logs
    correct[at] = np.argmax(logits) == TARGETS[at]
    dlogits = COTANGENT[at] * (np.exp(logs) - label)
    dx[at] = dlogits @ head
    dhead += np.outer(dlogits, X[at])
  return losses, correct, dx, dhead


@pytest.mark.parametrize(
  ('chunk', 'smoothing', 'tied'),
  [
    (0, 0.0, True),
    (0, 0.2, False),
    (1, 0.2, True),
    (7, 0.0, False),
    (7, 0.2, True),
    (40, 0.2, True),
    (100, 0.2, True),
  ],
)
def test_losses_and_gradients(chunk, smoothing, tied):
  module = make(loss_chunk=chunk, tied=tied)
  name = 'embedding' if tied else 'head'
  graphdef, params = nnx.split(module)
  params = nnx.to_pure_dict(params)
  params[name] = 10 * params[name]
  losses, correct, dx, dhead = in_numpy(np.asarray(params[name]), smoothing)

  @jax.jit
  def run(params, x):
    found = nnx.merge(graphdef, params).losses(
      x, jnp.asarray(TARGETS), smoothing
    )
    return jnp.sum(found.smoothed * COTANGENT), found

  (dparams, dx_), found = jax.grad(run, (0, 1), has_aux=True)(params, X)
  np.testing.assert_allclose(found.cross_entropy, losses[0], rtol=1e-5)
  np.testing.assert_allclose(found.smoothed, losses[1], rtol=1e-5)
  np.testing.assert_array_equal(found.correct, correct)
  np.testing.assert_allclose(dx_, dx, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(dparams[name], dhead, rtol=1e-4, atol=1e-5)


def test_logits_are_never_whole():
  module = make(vocab_size=997, loss_chunk=4)
  graphdef, params = nnx.split(module)
  targets = jnp.asarray(TARGETS)
  loss = lambda p, x: jnp.sum(nnx.merge(graphdef, p).losses(x, targets)[0])
  text = jax.jit(jax.grad(loss, (0, 1))).lower(params, X).compile().as_text()
  assert '4,997]' in text
  for whole in ('40,997]', '8,5,997]', '10,4,997]'):
    assert whole not in text


@pytest.mark.parametrize('sizes', [(2, 4, 1), (1, 2, 4), (1, 1, 8), (2, 1, 1)])
def test_any_mesh(mesh, sizes):
  module = make(loss_chunk=3, vocab_size=16)
  graphdef, params = nnx.split(module)
  params = nnx.to_pure_dict(params)
  cases = params, TARGETS % 16, X

  def run(params, tokens, x):
    module = nnx.merge(graphdef, params)
    found = module.losses(x + module.embed(tokens), tokens)
    return jnp.sum(found.smoothed), (found, module.logits(x))

  run = jax.jit(jax.grad(run, (0, 2), has_aux=True))
  expected = jax.device_get(run(*cases))
  data, expert, fsdp = sizes
  on = mesh(data, expert, fsdp)
  spec = sharding.fsdp(
    {
      'w': jax.ShapeDtypeStruct(
        (16, 8), jnp.float32, sharding=jax.NamedSharding(on, jax.P())
      )
    }
  )['w'].sharding
  batch = jax.NamedSharding(on, sharding.batch_spec())
  placed = [jax.device_put(v, batch) for v in cases[1:]]
  found = run(jax.device_put(params, spec), *placed)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, jax.device_get(found), expected)


def test_bfloat16_logits_are_float32():
  module = make(dtype='bfloat16')
  x = module.embed(jnp.asarray(TARGETS))
  assert x.dtype == jnp.bfloat16
  assert module.logits(x).dtype == jnp.float32


def test_of_equal_logits_the_first_is_the_answer():
  found = make().losses(jnp.zeros((1, 2, 8)), jnp.asarray([[0, 1]]))
  assert found.correct.tolist() == [[True, False]]
