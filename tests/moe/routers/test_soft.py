"""Statistics of a fresh router on LayerNormed random tokens; its factors."""

import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import SoftMoE
from softmoe.moe.execution import attend, dispatch
from softmoe.moe.routers import soft

TOKENS = 196


def fresh(width, experts=128, slots=1):
  router = soft.SoftRouter(width, experts, slots, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (4, TOKENS, width))
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  return router, x / jnp.std(x, axis=-1, keepdims=True)


@pytest.mark.parametrize('width', [192, 384, 768])
def test_logit_deviation_is_one_over_root_width(width):
  router, x = fresh(width)
  # Cosines of independent directions in `width` dimensions.
  assert np.std(router.logits(x)) == pytest.approx(width**-0.5, rel=0.02)


def test_dispatch_is_nearly_uniform():
  router, x = fresh(384)
  weights = router(x)[0].dispatch
  entropy = -jnp.sum(weights * jnp.log(weights), axis=-3)
  assert np.min(entropy) / np.log(TOKENS) > 0.99


def test_slot_size_is_that_of_a_mean_of_tokens():
  router, x = fresh(384)
  weights = router(x)[0].dispatch
  slots = dispatch.dispatch(x, weights)
  # Independent tokens of unit variance under weights w: variance sum(w^2).
  expected = jnp.sqrt(jnp.mean(jnp.sum(weights**2, axis=-3)))
  actual = jnp.sqrt(jnp.mean(slots**2))
  assert actual == pytest.approx(float(expected), rel=0.05)
  assert actual == pytest.approx(TOKENS**-0.5, rel=0.05)


def test_weights_sum_to_one_and_scale_sharpens_them():
  router, x = fresh(384)
  to_slots, to_tokens = router(x)[0]
  np.testing.assert_allclose(jnp.sum(to_slots, axis=-3), 1, rtol=1e-5)
  np.testing.assert_allclose(jnp.sum(to_tokens, axis=(-2, -1)), 1, rtol=1e-5)
  router.scale[...] = jnp.float32(50)
  assert np.mean(np.max(router(x)[0].dispatch, axis=-3)) > 3 * np.mean(
    np.max(to_slots, axis=-3)
  )


def test_logits_do_not_depend_on_the_size_of_tokens_or_phi():
  router, x = fresh(384)
  logits = router.logits(x)
  np.testing.assert_allclose(router.logits(7 * x), logits, atol=1e-5)
  router.phi[...] = 7 * router.phi[...]
  np.testing.assert_allclose(router.logits(x), logits, atol=1e-4)


def test_slots_mix_the_tokens_as_they_came():
  router, x = fresh(384)
  weights = router(x)[0].dispatch
  slots = dispatch.dispatch(7 * x, router(7 * x)[0].dispatch)
  np.testing.assert_allclose(
    slots, 7 * dispatch.dispatch(x, weights), rtol=1e-4, atol=1e-5
  )


class Sharper(soft.SoftRouter):
  """Weighs in a way of its own."""

  def logits(self, x):
    return 2 * super().logits(x)


def test_weights_of_its_own_kind_alone_and_many_of_them_have_factors():
  x = jax.ShapeDtypeStruct((2, 1024, 4), jnp.float32)
  make = lambda slots, cls=soft.SoftRouter, **options: cls(
    4, 2, slots, rngs=nnx.Rngs(0), **options
  )
  of = lambda *args, **options: jax.eval_shape(
    lambda x: make(*args, **options).factors(x), x
  )
  assert of(2**13) is None  # 2^24 weights of a group, in two groups
  found = of(2**13 + 1)
  assert found.tokens.shape == x.shape
  assert found.slots.shape == (4, 2, 2**13 + 1)
  assert of(2**14, Sharper) is None
  assert of(2**14, dispatch='uniform') is None
  with pytest.raises(ValueError, match="x: got 'width 4'; 5"):
    jax.eval_shape(soft.SoftRouter(5, 2, 1, rngs=nnx.Rngs(0)).factors, x)


def test_a_layer_with_many_weights_makes_no_array_of_them(monkeypatch):
  x, layer = jnp.ones((2, 24, 4)), SoftMoE(4, num_experts=40, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(layer)
  value = lambda params, x: jnp.sum(nnx.merge(graphdef, params)(x)[0] ** 2)
  # Tokens and slots, in any order, with or without the slots of an expert.
  pairs = re.compile(r'\[(\d+,)?(24,40|40,24|24,40,1|40,1,24)\]')
  program = lambda: str(jax.make_jaxpr(jax.grad(value, (0, 1)))(params, x))
  assert pairs.search(program())
  monkeypatch.setattr(soft, 'MOST_WEIGHTS', 24 * 40 - 1)
  monkeypatch.setattr(attend, 'TILE', 8)
  assert not pairs.search(program())
  assert layer.route(x).dispatch.shape == (2, 24, 40, 1)
