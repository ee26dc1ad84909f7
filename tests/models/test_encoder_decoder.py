"""Who reads whom, caches, norms, and what an encoder-decoder refuses."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.models import config as model_config
from softmoe.models import encoder_decoder

MOE = model_config.MoEConfig(
  router='threshold', threshold=0.6, blocks=(1,), num_experts=4
)
CONFIG = model_config.EncoderDecoderConfig(
  width=8,
  depth=2,
  decoder_depth=3,
  mlp_dim=16,
  num_heads=2,
  vocab_size=11,
  moe=MOE,
  decoder_moe_blocks=(0, 2),
)
LENGTH = 6
RNG = np.random.default_rng(0)
SOURCE, TARGET = RNG.integers(0, 11, (2, 2, LENGTH)).astype(np.int32)
MASK = np.arange(LENGTH)[None] < np.array([[LENGTH], [3]])


def make(**fields):
  """Returns the structure and parameters that are not small."""
  config = dataclasses.replace(CONFIG, **fields)
  model = encoder_decoder.EncoderDecoder(
    config, length=LENGTH, rngs=nnx.Rngs(0)
  )
  graphdef, params = nnx.split(model)
  return graphdef, jax.tree.map(lambda w: 3 * w, params)


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, params, source, mask, target):
  model = nnx.merge(graphdef, params)
  memory, _ = model.encode(source, mask)
  x, _, _ = model.decode(target, memory, mask)
  return model.logits(x)


def changed(tokens, at):
  tokens = tokens.copy()
  tokens[at] = (tokens[at] + 1) % 11
  return tokens


@pytest.mark.parametrize(
  'fields',
  [
    dict(norm='post', activation='relu'),
    pytest.param(dict(positions='rotary'), marks=pytest.mark.slow),
  ],
)
def test_who_sees_whom(fields):
  model = make(**fields)
  before = run(*model, SOURCE, MASK, TARGET)
  for i in range(1, LENGTH):
    after = run(*model, SOURCE, MASK, changed(TARGET, np.s_[:, i:]))
    np.testing.assert_array_equal(after[:, :i], before[:, :i])
    assert np.all(after[:, i] != before[:, i])
  after = run(*model, changed(SOURCE, np.s_[1, 3:]), MASK, TARGET)
  np.testing.assert_array_equal(after, before)  # it is padding
  after = run(*model, changed(SOURCE, np.s_[:, 2]), MASK, TARGET)
  assert np.all(after != before)


@pytest.mark.parametrize(
  'scan', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_caches(scan):
  graphdef, params = make(scan=scan, norm='post')
  expected = run(graphdef, params, SOURCE, MASK, TARGET)

  @functools.partial(jax.jit, static_argnums=0)
  def start(graphdef, params):
    model = nnx.merge(graphdef, params)
    memory, _ = model.encode(jnp.asarray(SOURCE), jnp.asarray(MASK))
    return model.init_caches(memory, LENGTH)

  @functools.partial(jax.jit, static_argnums=0)
  def step(graphdef, params, token, caches):
    model = nnx.merge(graphdef, params)
    mask = jnp.asarray(MASK)
    x, _, caches = model.decode(token, None, mask, caches=caches)
    return model.logits(x), caches

  caches = start(graphdef, params)
  for i in range(LENGTH):
    found, caches = step(graphdef, params, TARGET[:, i : i + 1], caches)
    np.testing.assert_allclose(
      found[:, 0], expected[:, i], rtol=1e-4, atol=1e-4
    )


def test_post_norm_has_no_norm_behind():
  with_norms, without = make()[1], make(norm='post')[1]
  assert {'encoder_norm', 'decoder_norm'} <= {*with_norms} - {*without}


@pytest.mark.parametrize(
  ('fields', 'field'),
  [
    (dict(decoder_moe_blocks=(3,)), 'config.model.decoder_moe_blocks'),
    (dict(decoder_moe_blocks=(0, 0)), 'config.model.decoder_moe_blocks'),
    (dict(norm='both'), 'config.model.norm'),
    (
      dict(moe=model_config.MoEConfig(blocks=(1,), num_experts=4)),
      'config.model.moe.router',
    ),
  ],
)
def test_bad_fields(fields, field):
  with pytest.raises(UserError, match=field):
    make(**fields)


def test_any_router_serves_the_encoder():
  moe = model_config.MoEConfig(blocks=(1,), num_experts=4)
  model = make(moe=moe, decoder_moe_blocks=())
  assert np.all(np.isfinite(run(*model, SOURCE, MASK, TARGET)))
