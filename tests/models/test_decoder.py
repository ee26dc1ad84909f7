"""Who sees whom in a decoder, its forms, and what it refuses."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.models import config as model_config
from softmoe.models import decoder

MOE = model_config.MoEConfig(
  router='threshold', threshold=0.6, blocks=(1,), num_experts=4
)
CONFIG = model_config.DecoderConfig(
  width=8, depth=2, mlp_dim=16, num_heads=2, vocab_size=11, moe=MOE
)
LENGTH = 6
TOKENS = np.random.default_rng(0).integers(0, 11, (2, LENGTH))


def make(**fields):
  config = dataclasses.replace(CONFIG, **fields)
  return decoder.Decoder(config, length=LENGTH, rngs=nnx.Rngs(0))


@functools.partial(jax.jit, static_argnums=0)
def apply(graphdef, params, tokens, **options):
  model = nnx.merge(graphdef, params)
  x, aux, _ = model(tokens, **options)
  return model.logits(x), aux


def run(model, tokens, **options):
  # Parameters that start small hide what they should show.
  graphdef, params = nnx.split(model)
  params = jax.tree.map(lambda w: 3 * w, params)
  return np.asarray(apply(graphdef, params, jnp.asarray(tokens), **options)[0])


@pytest.mark.parametrize('positions', ['learned', 'rotary'])
def test_no_token_sees_a_later_one(positions):
  model = make(positions=positions)
  before = run(model, TOKENS)
  for i in range(1, LENGTH):
    changed = TOKENS.copy()
    changed[:, i:] = (changed[:, i:] + 1) % 11
    after = run(model, changed)
    np.testing.assert_array_equal(after[:, :i], before[:, :i])
    assert np.all(after[:, i] != before[:, i])


@pytest.mark.slow
@pytest.mark.parametrize('positions', ['learned', 'rotary'])
def test_documents_of_a_window_are_as_each_alone(positions):
  model = make(positions=positions)
  segments = np.array([[1, 1, 2, 2, 2, 3]] * 2)
  places = np.array([[0, 1, 0, 1, 2, 0]] * 2)
  together = run(model, TOKENS, segments=segments, positions=places)
  for start, stop in ((0, 2), (2, 5), (5, 6)):
    alone = run(model, TOKENS[:, start:stop])
    np.testing.assert_allclose(together[:, start:stop], alone, atol=1e-5)


def test_positions_matter():
  for positions in ('learned', 'rotary'):
    model = make(positions=positions)
    one = run(model, TOKENS)
    other = run(model, TOKENS, positions=np.array([[0, 2, 3, 4, 4, 5]] * 2))
    assert np.max(np.abs(one - other)) > 1e-3


def test_head_of_its_own():
  tied, untied = (nnx.state(make(tied=tied)) for tied in (True, False))
  count = lambda state: sum(w.size for w in jax.tree.leaves(state))
  assert count(untied) - count(tied) == 11 * 8


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize(
  ('moe', 'reason'),
  [
    (dict(router='soft'), 'its slots mix'),
    (dict(router='experts_choice', capacity_factor=1.0), 'which tokens'),
    (dict(router='threshold', capacity_factor=1.0), 'which tokens'),
    (dict(router='tokens_choice', capacity_factor=1.0), 'which tokens'),
  ],
)
def test_routers_that_see_later_tokens(moe, reason, scan):
  moe = model_config.MoEConfig(**moe, blocks=(1,), num_experts=4)
  with pytest.raises(UserError, match=reason) as e:
    make(moe=moe, scan=scan)
  assert e.value.field == 'config.model.moe.router'
  assert 'allow_noncausal' in str(e.value)


def test_a_router_that_sees_later_tokens_may_be_taken():
  moe = model_config.MoEConfig(blocks=(1,), num_experts=4)
  assert run(make(moe=moe, allow_noncausal=True), TOKENS).shape == (2, 6, 11)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('vocab_size', 0),
    ('positions', 'sine'),
    ('activation', 'tanh'),
    ('norm', 'post'),
  ],
)
def test_bad_fields(field, value):
  with pytest.raises(UserError, match=f'config.model.{field}: got'):
    make(**{field: value})
