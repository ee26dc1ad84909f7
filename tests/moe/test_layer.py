"""Soft MoE against Algorithm 1 written as plain loops, in float32."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import SoftMoE

P = jax.P
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
# batch, tokens, width, experts, slots of an expert
SHAPES = [
  (8, 5, 6, 4, 2),  # more slots than tokens
  (8, 11, 6, 4, 1),  # fewer slots than tokens
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
def make(*shape, **options):
  """Returns a layer whose parameters are shapes without numbers."""
  width, num_experts, slots = shape
  return nnx.eval_shape(
    lambda: SoftMoE(
      width,
      num_experts=num_experts,
      slots_per_expert=slots,
      rngs=nnx.Rngs(0),
      **options,
    )
  )


def weights(module, seed=0, scale=3.0):
  """Returns numbers; at the start the mixing would be nearly uniform."""
  rng = np.random.default_rng(seed)
  draw = lambda w: rng.normal(0, 0.5, w.shape).astype(np.float32)
  params = jax.tree.map(draw, nnx.to_pure_dict(nnx.state(module)))
  params['router']['scale'] = np.float32(scale)
  return params


def tokens(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32)


def layer(*shape, **options):
  """Returns the compiled layer as a function of tokens and mask."""
  module = make(*shape, **options)
  graphdef, params = nnx.graphdef(module), weights(module)
  run = lambda params, x, mask=None: nnx.merge(graphdef, params)(x, mask)[0]
  return functools.partial(jax.jit(run, compiler_options=QUICK), params)


def value_and_gradients(f, params, x, mask, dy):
  def scalar(params, x):
    y = f(params, x, mask)
    return jnp.sum(y * dy), y

  return jax.grad(scalar, argnums=(0, 1), has_aux=True)(params, x)


@functools.cache
def by_loops(shape):
  loops = jax.vmap(one_image, in_axes=(None, 0, 0))
  run = functools.partial(value_and_gradients, loops)
  return jax.jit(run, compiler_options=QUICK)


@pytest.mark.parametrize(
  ('sizes', 'shape'),
  [(None, SHAPES[0]), (None, SHAPES[1]), (None, SHAPES[2])]
  + [(sizes, SHAPES[0]) for sizes in ((1, 1), (2, 4), (4, 2))],
)
def test_equals_algorithm_1_forward_and_gradient(mesh, sizes, shape):
  b, m, d, e, s = shape
  module, x, dy = make(d, e, s), tokens(b, m, d), tokens(b, m, d, seed=1)
  mask = np.random.default_rng(0).random((b, m)) < 0.6
  mask[:, 0] = True
  masks = mask, np.ones_like(mask)
  params = weights(module)
  expected = [by_loops(shape)(params, x, np.float32(m), dy) for m in masks]
  place = lambda v: v
  if sizes:
    mesh(*sizes)
    place = lambda v: jax.device_put(v, P(('data', 'expert')))
    params['experts'] = jax.tree.map(
      lambda w: jax.device_put(w, P('expert')), params['experts']
    )
  graphdef = nnx.graphdef(module)
  call = lambda params, x, mask: nnx.merge(graphdef, params)(x, mask)[0]
  run = functools.partial(value_and_gradients, call)
  run = jax.jit(run, compiler_options=QUICK)
  actual = [run(params, place(x), place(m), place(dy)) for m in masks]
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5),
    actual,
    expected,
  )


def test_one_expert_one_slot_gives_every_token_the_same():
  y = layer(4, 1, 1)(tokens(2, 7, 4))
  np.testing.assert_allclose(y, np.broadcast_to(y[:, :1], y.shape), rtol=1e-6)


@pytest.mark.parametrize('leading', [(), (3,), (2, 3), (1, 2, 3)])
def test_leading_axes_are_independent(leading):
  run, x = layer(4, 3, 2), tokens(*leading, 5, 4)
  rows = [run(row) for row in x.reshape(-1, 5, 4)]
  np.testing.assert_allclose(
    run(x).reshape(-1, 5, 4), jnp.stack(rows), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('leading', [(8,), (8, 3), (8, 2, 3)])
def test_leading_axes_on_a_mesh(mesh, leading):
  module, x = make(4, 4, 1), tokens(*leading, 5, 4)
  params, expected = weights(module), layer(4, 4, 1)(x)
  mesh(2, 4)
  params['experts'] = jax.tree.map(
    lambda w: jax.device_put(w, P('expert')), params['experts']
  )
  x = jax.device_put(x, P('data'))
  graphdef = nnx.graphdef(module)
  run = jax.jit(
    lambda params, x: nnx.merge(graphdef, params)(x)[0], compiler_options=QUICK
  )
  y = run(params, x)
  assert y.sharding.is_equivalent_to(x.sharding, x.ndim)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing_and_gets_zero():
  run, x = layer(4, 3, 1), tokens(2, 5, 4)
  padded = np.concatenate([x, np.full((2, 3, 4), np.nan, np.float32)], axis=1)
  mask = np.broadcast_to(np.arange(8) < 5, (2, 8))
  y = run(padded, mask)
  np.testing.assert_allclose(y[:, :5], run(x), rtol=1e-5, atol=1e-6)
  assert np.all(np.asarray(y[:, 5:]) == 0)


def test_all_padding_or_zero_tokens_have_finite_gradients():
  module = make(4, 3, 1)
  graphdef, params = nnx.graphdef(module), weights(module)
  loss = lambda p, x, m: jnp.sum(nnx.merge(graphdef, p)(x, m)[0] ** 2)
  run = jax.jit(jax.value_and_grad(loss, (0, 1)), compiler_options=QUICK)
  full, empty = np.ones((2, 5), bool), np.zeros((2, 5), bool)
  value, nothing = run(params, tokens(2, 5, 4), empty)
  assert value == 0
  _, zeros = run(params, np.zeros((2, 5, 4), np.float32), full)
  for gradient in jax.tree.leaves((nothing, zeros)):
    assert np.all(np.isfinite(gradient))


def test_bfloat16_tokens_are_routed_in_float32():
  x = jnp.asarray(tokens(2, 9, 16), jnp.bfloat16)
  low = layer(16, 4, 1, dtype=jnp.bfloat16)(x)
  assert low.dtype == jnp.bfloat16
  router = jax.eval_shape(
    lambda: SoftMoE(16, num_experts=4, rngs=nnx.Rngs(0)).router(x)[0]
  )
  assert router.dispatch.dtype == router.combine.dtype == jnp.float32
  y = layer(16, 4, 1)(x.astype(jnp.float32))
  size = np.max(np.abs(y))
  np.testing.assert_allclose(low.astype(jnp.float32), y, atol=0.02 * size)


def test_any_module_can_be_the_expert():
  expert = lambda rngs: nnx.Linear(4, 7, rngs=rngs)
  assert layer(4, 3, 1, expert=expert)(tokens(2, 5, 4)).shape == (2, 5, 7)
  kernel = make(4, 3, 1, expert=expert).experts.stacked.kernel
  assert kernel.shape == (3, 4, 7)


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
  module = make(4, 3, 1)
  graphdef, params = nnx.graphdef(module), weights(module, scale=1e4)
  run = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x)[0])
  assert np.all(np.isfinite(run(params, tokens(2, 5, 4))))


def test_the_start_of_the_scale_is_all_that_it_changes():
  at_one, at_eight = (
    nnx.to_pure_dict(nnx.state(SoftMoE(4, num_experts=2, rngs=r, **options)))
    for r, options in ((nnx.Rngs(0), {}), (nnx.Rngs(0), dict(scale_init=8.0)))
  )
  assert at_one['router'].pop('scale') * 8 == at_eight['router'].pop('scale')
  jax.tree.map(np.testing.assert_array_equal, at_one, at_eight)


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(num_experts=0), 'num_experts: got 0; at least 1'),
    (dict(num_experts=2, slots_per_expert=0), 'slots_per_expert: got 0'),
    (
      dict(num_experts=2, expert_init='same'),
      "expert_init: got 'same'; one of",
    ),
  ],
)
def test_bad_arguments_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    SoftMoE(4, rngs=nnx.Rngs(0), **options)


def test_wrong_width_is_named():
  with pytest.raises(ValueError, match="x: got 'width 5'; 4"):
    layer(4, 2, 1)(tokens(2, 3, 5))


def test_experts_must_divide_over_the_mesh(mesh):
  mesh(2, 4)
  with pytest.raises(ValueError, match='num_experts: got 6; a multiple of 4'):
    SoftMoE(4, num_experts=6, rngs=nnx.Rngs(0))
