"""The layer against Algorithm 1 written as plain loops, in float32."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import SoftMoE

P = jax.P
MESHES = [(1, 1), (2, 4), (4, 2)]
# batch, tokens, width, experts, slots of an expert
SHAPES = [
  (8, 5, 6, 8, 2),  # more slots than tokens
  (8, 17, 16, 4, 2),  # fewer slots than tokens
  (8, 1, 6, 4, 1),  # one token
]


def unit(v):
  return v / jnp.sqrt(jnp.sum(v**2) + 1e-6)


def one_expert(params, i, x):
  up, down = params['up'], params['down']
  h = x @ up['kernel'][i] + up['bias'][i]
  h = 0.5 * h * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
  return h @ down['kernel'][i] + down['bias'][i]


def one_image(params, x, mask):
  """Algorithm 1 for tokens (m, d), slot after slot."""
  phi, scale = params['router']['phi'], params['router']['scale']
  slots = [(i, j) for i in range(phi.shape[1]) for j in range(phi.shape[2])]
  tokens = jnp.stack([unit(token) for token in x])
  logits = {slot: scale * tokens @ unit(phi[:, *slot]) for slot in slots}
  everything = sum(jnp.exp(logits[slot]) for slot in slots)
  y = jnp.zeros_like(x)
  for slot in slots:
    e = jnp.exp(logits[slot]) * mask
    output = one_expert(params['experts']['stacked'], slot[0], e / sum(e) @ x)
    combine = jnp.exp(logits[slot]) / everything * mask
    y = y + jnp.outer(combine, output)
  return y


@functools.cache
def expected(shape, masked):
  """Gradients of a weighted sum of the outputs, and the outputs, by loops."""
  x, mask, weights = draw(shape)
  mask = jnp.asarray(mask if masked else np.ones_like(mask), jnp.float32)
  loops = jax.vmap(one_image, in_axes=(None, 0, 0))
  _, state = make(shape)
  return jax.jit(
    lambda p, x: value_and_gradients(
      lambda p, x: loops(p, x, mask), p, x, weights
    )
  )(nnx.to_pure_dict(state), x)


def draw(shape, seed=0):
  b, m, d, _, _ = shape
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(b, m, d)).astype(np.float32)
  mask = rng.random((b, m)) < 0.6
  mask[:, 0] = True
  weights = rng.normal(size=x.shape).astype(np.float32)
  return jnp.asarray(x), jnp.asarray(mask), jnp.asarray(weights)


def make(shape, seed=0, **options):
  _, _, d, e, s = shape
  layer = SoftMoE(
    d, num_experts=e, slots_per_expert=s, rngs=nnx.Rngs(seed), **options
  )
  # A scale and biases that matter: at the start the mixing is nearly uniform.
  layer.router.scale[...] = jnp.float32(3.0)
  return nnx.split(layer)


def value_and_gradients(f, params, x, weights):
  def scalar(params, x):
    y = f(params, x)
    return jnp.sum(y * weights), y

  return jax.grad(scalar, argnums=(0, 1), has_aux=True)(params, x)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('data, expert', MESHES)
def test_equals_loops_over_experts_forward_and_gradient(
  mesh, data, expert, shape, masked
):
  x, mask, weights = draw(shape)
  by_loops = expected(shape, masked)
  mesh(data, expert)
  graphdef, state = make(shape)
  place = lambda v: jax.device_put(v, P(('data', 'expert')))
  x, weights = place(x), place(weights)
  mask = place(mask) if masked else None
  actual = jax.jit(
    lambda p, x: value_and_gradients(
      lambda p, x: nnx.merge(graphdef, p)(x, mask)[0], p, x, weights
    )
  )(nnx.to_pure_dict(state), x)
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5),
    actual,
    by_loops,
  )


def test_one_expert_one_slot_gives_every_token_the_same():
  layer = SoftMoE(4, num_experts=1, rngs=nnx.Rngs(0))
  x, _, _ = draw((2, 7, 4, 1, 1))
  y, _ = layer(x)
  np.testing.assert_allclose(y, np.broadcast_to(y[:, :1], y.shape), rtol=1e-6)


@pytest.mark.parametrize('leading', [(), (3,), (2, 3), (1, 2, 3)])
def test_leading_axes_are_independent(leading):
  layer = SoftMoE(4, num_experts=3, slots_per_expert=2, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (*leading, 5, 4))
  y, _ = layer(x)
  rows = [layer(row)[0] for row in x.reshape(-1, 5, 4)]
  np.testing.assert_allclose(
    y.reshape(-1, 5, 4), jnp.stack(rows), rtol=1e-5, atol=1e-6
  )


def test_padding_changes_nothing_and_gets_zero():
  layer = SoftMoE(4, num_experts=3, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (2, 5, 4))
  padded = jnp.concatenate([x, jnp.full((2, 3, 4), jnp.nan)], axis=1)
  mask = jnp.arange(8)[None, :] < jnp.array([[5], [5]])
  y, _ = layer(padded, mask)
  np.testing.assert_allclose(y[:, :5], layer(x)[0], rtol=1e-5, atol=1e-6)
  assert np.all(np.asarray(y[:, 5:]) == 0)


def test_all_padding_gives_zero_and_finite_gradients():
  layer = SoftMoE(4, num_experts=3, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(layer)
  mask = jnp.zeros((2, 5), bool)
  loss = lambda p, x: jnp.sum(nnx.merge(graphdef, p)(x, mask)[0] ** 2)
  value, gradients = jax.value_and_grad(loss)(params, jnp.ones((2, 5, 4)))
  assert value == 0
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


def test_zero_tokens_have_finite_gradients():
  layer = SoftMoE(4, num_experts=3, rngs=nnx.Rngs(0))
  gradient = jax.grad(lambda x: jnp.sum(layer(x)[0] ** 2))(jnp.zeros((2, 5, 4)))
  assert np.all(np.isfinite(gradient))


def test_bfloat16_tokens_are_routed_in_float32():
  layer = SoftMoE(16, num_experts=4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (2, 9, 16))
  y, _ = layer(x.astype(jnp.bfloat16))
  dispatch, combine = layer.router(x.astype(jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  assert dispatch.dtype == combine.dtype == jnp.float32
  np.testing.assert_allclose(
    y.astype(jnp.float32), layer(x)[0].astype(jnp.float32), atol=0.02
  )


def test_any_module_can_be_the_expert():
  layer = SoftMoE(
    4,
    num_experts=3,
    expert=lambda rngs: nnx.Linear(4, 7, rngs=rngs),
    rngs=nnx.Rngs(0),
  )
  y, _ = layer(jnp.ones((2, 5, 4)))
  assert y.shape == (2, 5, 7)
  assert layer.experts.stacked.kernel.shape == (3, 4, 7)


def test_experts_start_independent_or_identical():
  kernel = lambda init: np.asarray(
    SoftMoE(
      4, num_experts=3, expert_init=init, rngs=nnx.Rngs(0)
    ).experts.stacked.up.kernel[...]
  )
  independent, identical = kernel('independent'), kernel('identical')
  assert len(np.unique(independent[:, 0, 0])) == 3
  assert np.all(identical == identical[:1])


def test_needs_no_softmax_trick_for_a_large_scale():
  layer = SoftMoE(4, num_experts=3, rngs=nnx.Rngs(0))
  layer.router.scale[...] = jnp.float32(1e4)
  y, _ = layer(jax.random.normal(jax.random.key(0), (2, 5, 4)))
  assert np.all(np.isfinite(y))


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(num_experts=0), 'num_experts: got 0; at least 1'),
    (dict(num_experts=2, slots_per_expert=0), 'slots_per_expert: got 0'),
    (dict(num_experts=2, expert_init='same'), "init: got 'same'; one of"),
  ],
)
def test_bad_arguments_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    SoftMoE(4, rngs=nnx.Rngs(0), **options)


def test_wrong_width_is_named():
  layer = SoftMoE(4, num_experts=2, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match='x: got width 5; 4'):
    layer(jnp.ones((2, 3, 5)))


def test_experts_must_divide_over_the_mesh(mesh):
  mesh(2, 4)
  with pytest.raises(ValueError, match='num_experts: got 6; a multiple of 4'):
    SoftMoE(4, num_experts=6, rngs=nnx.Rngs(0))


def test_experts_stay_sharded_with_two_all_to_alls_a_direction(mesh):
  mesh(2, 4)
  graphdef, state = make((8, 5, 16, 8, 2))
  params = nnx.to_pure_dict(state)
  x = jax.device_put(jnp.ones((8, 5, 16)), P(('data', 'expert')))

  def loss(params, x):
    return jnp.sum(nnx.merge(graphdef, params)(x)[0] ** 2)

  forward = jax.jit(loss).lower(params, x).compile().as_text()
  both = jax.jit(jax.grad(loss, argnums=(0, 1)))
  backward = both.lower(params, x).compile().as_text()
  count = lambda text, op: text.count(f' {op}(')
  assert count(forward, 'all-to-all') == 2
  assert count(backward, 'all-to-all') == 4
  for text in (forward, backward):
    assert count(text, 'all-gather') == 0
  for leaf in jax.tree.leaves(both(params, x)[0]['experts']):
    assert leaf.sharding.spec[0] == 'expert'
