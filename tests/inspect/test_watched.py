"""MoE layers that tell where tokens go, and experts that are dropped."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

import softmoe
from softmoe.inspect import watched

ROUTERS = {
  'soft': lambda rngs: softmoe.SoftRouter(6, 4, 2, rngs=rngs),
  'tokens': lambda rngs: softmoe.TokensChoice(
    6, 4, k=2, capacity_factor=0.7, rngs=rngs
  ),
}


class Model(nnx.Module):
  """Layers 0 to 10, of which none but 2 and 10 are mixtures."""

  def __init__(self, make):
    rngs = nnx.Rngs(0)
    self.blocks = nnx.List(
      [nnx.Dict(mlp=_moe(make, rngs) if i in (2, 10) else None)
       for i in range(11)]
    )  # fmt: skip

  def __call__(self, x):
    for block in self.blocks:
      x = x if block['mlp'] is None else block['mlp'](x)[0]
    return x


def _moe(make, rngs):
  experts = softmoe.Experts(
    lambda rngs: softmoe.Mlp(6, 5, rngs=rngs), 4, rngs=rngs
  )
  return softmoe.MoE(make(rngs), experts)


@pytest.fixture(params=ROUTERS)
def model(request):
  return Model(ROUTERS[request.param])


X = jax.random.normal(jax.random.key(1), (2, 5, 6))


def test_a_watched_model_answers_as_before_and_notes_each_routing(model):
  first = model.blocks[2]['mlp'].route(X)
  expected, notes = model(X), {}
  watched.watch(model, notes)
  np.testing.assert_array_equal(model(X), expected)
  assert list(notes) == ['blocks 2', 'blocks 10']  # and not 10 before 2
  routed, real = notes['blocks 2']
  same = jax.tree.map(jnp.array_equal, *map(jax.tree.leaves, (routed, first)))
  assert same and all(same)
  assert real.shape == X.shape[:2] and real.all()


def test_a_dropped_expert_gives_nothing_and_the_others_what_they_did(model):
  (_, _, _, moe), (_, _, _, other) = watched.places(model)
  parts = [moe(X)[0] * 0]
  keep = np.eye(4, dtype=np.float32)
  whole, later = moe(X)[0], other(X)[0]
  for kept in keep:
    alone = nnx.clone(model)
    watched.drop_experts(alone, [jnp.asarray(kept), jnp.ones(4)])
    one, two = (place[-1] for place in watched.places(alone))
    parts.append(one(X)[0])
    np.testing.assert_array_equal(two(X)[0], later)
  np.testing.assert_allclose(sum(parts), whole, rtol=1e-5, atol=1e-6)
  assert sum(np.abs(part).max() > 0 for part in parts) >= 2
