"""What a router says of its costs, and how exactly it computes."""

import jax
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.models import config as model_config
from softmoe.models import mixtures
from softmoe.moe import routing
from softmoe.moe.routers import hashing
from tests.moe import programs
from tests.moe.layer_cases import CASES, draw, make
from tests.moe.layer_loops import weights_of

WIDTH, EXPERTS, TOKENS = 6, 8, 12


def router_of(router, **fields):
  moe = model_config.MoEConfig(router=router, num_experts=EXPERTS, **fields)
  config = model_config.TransformerConfig(width=WIDTH, mlp_dim=4, moe=moe)
  return nnx.eval_shape(lambda: mixtures.make_router(config, nnx.Rngs(0)))


def says(router, tokens=TOKENS, **options):
  """Returns what a router says of tokens, as shapes."""
  x = jax.ShapeDtypeStruct((tokens, WIDTH), jnp.float32)
  return jax.eval_shape(lambda r, x: r(x, **options)[0], router, x)


@pytest.mark.parametrize(
  ('router', 'fields', 'rows'),
  [
    ('soft', dict(slots_per_expert=3), 8 * 3 / 12),
    ('uniform', dict(), 8 / 12),
    ('identity', dict(slots_per_expert=2), 8 * 2 / 12),
    ('mixture_of_tokens', dict(group_size=12), 8 / 12),
    ('experts_choice', dict(capacity_factor=1.1), 2 * 8 / 12),
    ('tokens_choice', dict(k=3), 3),
    ('tokens_choice', dict(k=3, capacity_factor=1.5), 3),
    ('tokens_choice', dict(k=3, num_null=2), 3),
    ('bias_balanced', dict(k=2), 2),
    ('threshold', dict(threshold=0.5), 8),
    ('threshold', dict(capacity_factor=4.0), 6 * 8 / 12),
    ('quantile_balanced', dict(k=2), 2),
    ('expert_threshold', dict(k=3), 3),
    ('relu', dict(k=3), 3),
  ],
)
def test_rows_per_token(router, fields, rows):
  found = says(router_of(router, **fields)).rows_per_token()
  assert found == pytest.approx(rows) and isinstance(found, float)


def test_a_router_that_says_nothing_may_run_all_experts():
  gates = jnp.zeros((5, 4))
  routed = routing.Assignment(gates, gates)
  assert (routed.dropless, routed.is_adaptive) == (True, True)
  assert routed.rows_per_token() == 4
  assert routing.Assignment(gates, gates, choices=2).rows_per_token() == 2


@pytest.mark.parametrize(
  ('router', 'fields', 'dropless', 'adaptive'),
  [
    ('experts_choice', dict(capacity_factor=1.0), False, True),
    ('tokens_choice', dict(k=3), True, False),
    ('tokens_choice', dict(k=3, capacity_factor=1.5), False, False),
    ('tokens_choice', dict(k=3, num_null=2), True, True),
    ('bias_balanced', dict(k=2), True, False),
    ('threshold', dict(), True, True),
    ('threshold', dict(capacity_factor=2.0), False, True),
    ('expert_threshold', dict(k=3), True, True),
    ('relu', dict(k=3), True, True),
  ],
)
def test_dropless_and_adaptive(router, fields, dropless, adaptive):
  routed = says(router_of(router, **fields))
  assert (routed.dropless, routed.is_adaptive) == (dropless, adaptive)


def test_capacity_may_be_of_training_alone():
  router = router_of(
    'tokens_choice', k=2, capacity_factor=1.0, eval_capacity_factor=2.0
  )
  assert says(router).capacity == 6
  assert says(router, key=jax.random.key(0)).capacity == 3


def test_hash():
  router = hashing.HashRouter(EXPERTS, 5)
  routed = says(router, token_ids=jnp.zeros(TOKENS, jnp.int32))
  assert routed.rows_per_token() == 1 and not routed.is_adaptive


@pytest.mark.parametrize('name', CASES)
def test_matmuls_of_routers_are_in_full_float32(name):
  shape = 2, 2, WIDTH, EXPERTS, 4
  router = make(name, shape).router
  params = draw(name, shape, 0)[0].get('router', {})
  graphdef, key = nnx.graphdef(router), jax.random.key(0)
  ids = jnp.zeros(2, jnp.int32)
  options = {'token_ids': ids} if 'hash' in name else {}

  def weights(params, x):
    routed, aux = nnx.merge(graphdef, params)(x, key=key, **options)
    squares = [jnp.sum(v**2) for v in weights_of(routed)]
    return sum(squares) + sum(aux.losses.values())

  x = jax.ShapeDtypeStruct((2, WIDTH), jnp.bfloat16)
  program = jax.make_jaxpr(jax.grad(weights, (0, 1)))(params, x)
  every = programs.equations(program.jaxpr)
  found = [eqn for eqn in every if eqn.primitive.name == 'dot_general']
  learns = params and name != 'uniform'
  assert len(found) >= (2 if learns else 0)  # forward, and of the kernel
  highest = jax.lax.Precision.HIGHEST
  for eqn in found:
    assert {v.aval.dtype for v in eqn.invars} == {jnp.dtype('float32')}
    assert set(eqn.params['precision']) == {highest}
