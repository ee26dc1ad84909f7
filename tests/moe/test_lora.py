"""Kernels W + A B, whichever way experts run."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.moe import experts, layer, mlp
from softmoe.moe.routers import soft, tokens_choice

D, F, E, RANK = 8, 12, 4, 2
X = jax.random.normal(jax.random.key(1), (2, 6, D))


def make(router, rank=RANK, **options):
  create = lambda rngs: mlp.Mlp(D, F, activation='swiglu', rngs=rngs)
  some = experts.Experts(create, E, lora_rank=rank, rngs=nnx.Rngs(1))
  return layer.MoE(router(), some, **options)


def choice(**options):
  return tokens_choice.TokensChoice(D, E, k=2, rngs=nnx.Rngs(0), **options)


WAYS = {
  'slots': dict(router=lambda: soft.SoftRouter(D, E, 1, rngs=nnx.Rngs(0))),
  'buffers': dict(router=lambda: choice(capacity_factor=1.0)),
  'fused': dict(router=choice, implementation='fused'),
  'grouped': dict(router=choice, implementation='grouped'),
}


@pytest.mark.parametrize(
  'way',
  [
    pytest.param(
      way, marks=() if name in ('slots', 'grouped') else pytest.mark.slow
    )
    for name, way in WAYS.items()
  ],
  ids=WAYS,
)
def test_it_starts_as_the_base_and_computes_with_the_sum(way):
  with_lora, base = make(**way), make(**way, rank=0)
  np.testing.assert_array_equal(with_lora(X)[0], base(X)[0])
  linears = ('up', 'factor', 'down')
  for i, name in enumerate(linears):
    own, other = (getattr(k.experts.stacked, name) for k in (with_lora, base))
    b = jax.random.normal(jax.random.key(i), own.lora_b.shape)
    own.lora_b[...] = b
    kernel = other.kernel[...]
    other.kernel[...] = kernel + jnp.einsum('edr,erf->edf', own.lora_a[...], b)
  found, expected = with_lora(X), base(X)
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
  assert np.abs(found[0]).max() > 0.1
  assert found[1]['metrics']['flops'] == expected[1]['metrics']['flops']


def test_gradients_reach_the_low_rank_parts():
  graphdef, params = nnx.split(make(WAYS['slots']['router']), nnx.Param)
  loss = lambda params: jnp.mean(nnx.merge(graphdef, params)(X)[0] ** 2)
  found = jax.grad(loss)(nnx.to_pure_dict(params))['experts']['stacked']['up']
  assert np.abs(found['lora_b']).max() > 0
  assert not np.any(found['lora_a'])  # as long as B is 0


def test_a_rank_that_is_none_is_named():
  with pytest.raises(UserError, match='lora_rank: got 8; below 8'):
    make(choice, rank=8)
