"""Any module as the expert: with dropout, with state, on a mesh."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.moe import experts, layer, mlp, routing
from softmoe.moe.execution import pairs
from softmoe.moe.routers import (
  experts_choice,
  mixture_of_tokens,
  soft,
  tokens_choice,
)

P = jax.P
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
B, M, WIDTH, EXPERTS = 8, 6, 16, 8
KEY = jax.random.key(1)


class Drops(nnx.Module):
  """Returns its input, half of it dropped in training."""

  def __init__(self, rngs):
    self.scale = nnx.Param(rngs.normal((WIDTH, WIDTH)))

  def __call__(self, x, key=None):
    x = x + 0 * (x @ self.scale[...])
    if key is None:
      return x
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)


class Doubles(mlp.Mlp):
  """Has a call of its own, beside all that it inherits."""

  def __call__(self, x):
    return 2 * x


class OwnStreams(nnx.Module):
  def __init__(self, rngs):
    self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    return self.dropout(self.linear(x))


ROUTERS = {
  'soft': lambda: soft.SoftRouter(WIDTH, EXPERTS, 2, rngs=nnx.Rngs(0)),
  'experts_choice': lambda: experts_choice.ExpertsChoice(
    WIDTH, EXPERTS, capacity_factor=2.0, rngs=nnx.Rngs(0)
  ),
}


def dropless():
  return tokens_choice.TokensChoice(
    WIDTH, EXPERTS, capacity_factor=None, rngs=nnx.Rngs(0)
  )


def make(router, create=Drops, **options):
  stack = experts.Experts(create, EXPERTS, rngs=nnx.Rngs(0))
  return layer.MoE(router, stack, **options)


def tokens():
  return jax.random.normal(jax.random.key(0), (B, M, WIDTH))


@functools.partial(jax.jit, compiler_options=QUICK)
def apply(module, x, key=None):
  return module(x, key=key)[0]


def test_experts_drop_out_in_training_alone():
  module, x = make(ROUTERS['soft']()), tokens()
  whole, dropped = apply(module, x), apply(module, x, KEY)
  slots, _ = module.router(x[0])
  expected = jnp.einsum('td,tes,ues->ud', x[0], slots.dispatch, slots.combine)
  np.testing.assert_allclose(whole[0], expected, rtol=1e-4, atol=1e-5)
  assert np.all(np.abs(whole - dropped).max(axis=(1, 2)) > 0.01)
  np.testing.assert_array_equal(dropped, apply(module, x, KEY))
  assert np.any(dropped != apply(module, x, jax.random.key(2)))


def test_every_expert_and_group_draws_for_itself():
  stack = experts.Experts(Drops, 3, rngs=nnx.Rngs(0))
  keys = jax.random.split(KEY, (3, 2))
  y = np.asarray(stack(jnp.ones((3, 2, 4, WIDTH)), keys))
  masks = {row.tobytes() for row in y.reshape(6, -1)}
  assert len(masks) == 6
  assert set(np.unique(y)) == {0.0, 1.0}
  assert np.all(stack(jnp.ones((3, 2, 4, WIDTH))) == 1)


@pytest.mark.parametrize('size', [1, 4])
def test_groups_across_examples_draw_for_themselves(size):
  router = mixture_of_tokens.MixtureOfTokens(
    WIDTH, EXPERTS, group_size=size, rngs=nnx.Rngs(0)
  )
  x = jnp.broadcast_to(tokens()[:, :1], (B, M, WIDTH))  # the same at each place
  y = np.asarray(apply(make(router), x, KEY))
  assert len({y[:, t].tobytes() for t in range(M)}) == M


@pytest.mark.parametrize('name', ROUTERS)
@pytest.mark.parametrize('axes', [('data', 'expert'), ('data',)], ids=str)
def test_a_mesh_drops_the_same(mesh, axes, name):
  x = tokens()
  expected = apply(make(ROUTERS[name]()), x, KEY)
  mesh(2, 4)
  actual = apply(make(ROUTERS[name]()), jax.device_put(x, P(axes)), KEY)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_chunks_of_slots_draw_for_themselves(mesh):
  mesh(2, 4)
  router = soft.SoftRouter(
    WIDTH, EXPERTS, 2, dispatch='uniform', combine='uniform', rngs=nnx.Rngs(0)
  )
  module = make(router, exchange_chunks=2)
  x = jax.device_put(jnp.ones((B, M, WIDTH)), P(('data', 'expert')))
  # All slots hold the mean of the tokens: how many of the 16 kept it?
  kept = np.round(16 * np.asarray(apply(module, x, KEY))).astype(int)
  assert np.any(kept % 2)  # not both of an expert or neither


class Drawn(nnx.Module):
  """A router whose weights are noise, and whose slots reach no token."""

  num_experts = EXPERTS

  def __init__(self, **attributes):
    for name, value in attributes.items():
      setattr(self, name, value)

  def __call__(self, x, *, mask=None, key=None):
    noise = jax.random.uniform(key, (len(x), EXPERTS, 1))
    return routing.Slots(noise, jnp.zeros_like(noise)), routing.Aux()


class DrawsAlike(nnx.Module):
  """A shared module that draws as the router does."""

  def __call__(self, x, key=None):
    return jnp.pad(
      jax.random.uniform(key, (len(x), EXPERTS)), ((0, 0), (0, WIDTH - EXPERTS))
    )


@functools.partial(jax.jit, compiler_options=QUICK)
def noise(module, x, key=KEY):
  return module.route(x, key=key).dispatch[..., 0]


@pytest.mark.parametrize(
  ('attributes', 'groups'),
  [
    (dict(across_examples=True, group_size=4), M),
    (dict(segment=2, width=WIDTH, slots_per_expert=1), M // 2),
  ],
)
def test_routers_draw_for_each_group_of_an_example(attributes, groups):
  drawn = np.asarray(noise(make(Drawn(**attributes)), tokens()))[0]
  firsts = drawn[:: M // groups]
  assert len({row.tobytes() for row in firsts}) == groups


def test_noise_of_a_group_is_that_of_its_first_example():
  """By a key of either style."""
  module, first = make(Drawn(), group_size=2), jax.random.split(KEY, B)[2]
  expected = jax.random.uniform(first, (2 * M, EXPERTS))
  for key in (KEY, jax.random.PRNGKey(1)):
    drawn = noise(module, tokens(), key)[2:4].reshape(2 * M, -1)
    np.testing.assert_array_equal(drawn, expected)


def test_shared_modules_do_not_draw_what_routers_draw():
  module, x = make(Drawn(), shared=DrawsAlike()), tokens()
  assert np.all(apply(module, x, KEY)[..., :EXPERTS] != noise(module, x))


def test_shared_modules_get_a_key_for_each_example():
  x = jnp.broadcast_to(tokens()[:1], (B, M, WIDTH))
  linear = lambda rngs: nnx.Linear(WIDTH, WIDTH, rngs=rngs)
  options = dict(create=linear, shared=Drops(nnx.Rngs(0)))
  with_shared = make(ROUTERS['soft'](), **options)
  routed = apply(make(ROUTERS['soft'](), linear), x)
  np.testing.assert_allclose(apply(with_shared, x) - routed, x, atol=1e-4)
  part = np.asarray(apply(with_shared, x, KEY) - routed)
  dropped = np.abs(part) < 1e-4
  assert 0.4 < np.mean(dropped) < 0.6
  assert len({row.tobytes() for row in dropped}) == B


@pytest.mark.parametrize('name', ['experts_choice', 'dropless'])
def test_a_call_of_ones_own_is_what_runs(name):
  router = (ROUTERS | {'dropless': dropless})[name]()
  create = lambda rngs: Doubles(WIDTH, 5, rngs=rngs)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(module, x):
    routed = module.route(x)
    gates = jnp.where(routed.granted, routed.gates, 0)
    return module(x)[0], 2 * x * jnp.sum(gates, axis=2, keepdims=True)

  actual, expected = run(make(router, create), tokens())
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('bases', 'way'),
  [((mlp.Mlp,), 'grouped'), ((Doubles,), 'fused'), ((nnx.Linear,), 'fused')],
)
def test_a_call_of_ones_own_is_not_grouped(bases, way):
  own = type('Own', bases, {})
  stack = nnx.eval_shape(
    lambda: experts.Experts(
      lambda rngs: own(WIDTH, 5, rngs=rngs), EXPERTS, rngs=nnx.Rngs(0)
    )
  )
  assert pairs.choose('tpu', stack) == way
  if way == 'fused':
    with pytest.raises(UserError, match="implementation: got 'grouped'"):
      layer.MoE(dropless(), stack, implementation='grouped')


def test_dropless_experts_take_no_key():
  message = "experts: got 'calls that take `key`'; calls without `key`, or a"
  with pytest.raises(UserError, match=message):
    make(dropless())(tokens(), key=KEY)
  with pytest.raises(UserError, match=message):
    make(dropless())(tokens())


@pytest.mark.parametrize(
  ('create', 'variable'),
  [
    (OwnStreams, "RngCount 'dropout.rngs.count'"),
    (lambda rngs: nnx.BatchNorm(WIDTH, rngs=rngs), "BatchStat 'mean'"),
  ],
)
def test_state_is_refused(create, variable):
  with pytest.raises(UserError) as error:
    experts.Experts(create, EXPERTS, rngs=nnx.Rngs(0))
  assert str(error.value) == (
    f'experts: got "{variable}"; parameters alone; for dropout, a call that'
    ' takes `key`'
  )
  linear = lambda rngs: nnx.Linear(WIDTH, WIDTH, rngs=rngs)
  with pytest.raises(UserError, match='shared: got'):
    make(dropless(), linear, shared=create(nnx.Rngs(0)))


@pytest.mark.parametrize(
  ('name', 'axes'),
  [
    ('soft', ('data',)),
    ('experts_choice', ()),
    pytest.param(
      *('dropless', ('data', 'fsdp', 'expert')), marks=pytest.mark.slow
    ),
  ],
)
def test_unchecked_axes_change_nothing(mesh, name, axes):
  """Values and gradients of `check_vma=False`, fsdp and copies included."""
  router = (ROUTERS | {'dropless': dropless})[name]
  create = lambda rngs: mlp.Mlp(WIDTH, 5, rngs=rngs)
  module = make(router(), create, shared=create(nnx.Rngs(1)))
  graphdef, params = nnx.split(module, nnx.Param)

  def run(graphdef, params, x):
    def loss(params, x):
      y, aux = nnx.merge(graphdef, params)(x)
      return jnp.sum(y**2) + sum(aux['losses'].values()), (y, aux['losses'])

    f = jax.grad(loss, (0, 1), has_aux=True)
    return jax.jit(f, compiler_options=QUICK)(params, x)

  expected = run(graphdef, params, tokens())
  mesh(2, 2, 2)
  module.check_vma = False
  graphdef = nnx.graphdef(module)
  put = lambda spec: lambda w: jax.device_put(w, spec)
  params['experts'] = jax.tree.map(put(P('expert')), params['experts'])
  params['router'] = jax.tree.map(
    lambda w: put(P('fsdp') if w.ndim > 1 else P())(w), params['router']
  )
  params['shared'] = jax.tree.map(put(P()), params['shared'])
  actual = run(graphdef, params, jax.device_put(tokens(), P(axes or None)))
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(
      a, e, rtol=1e-4, atol=1e-5 * max(1, np.max(np.abs(e)))
    ),
    actual,
    expected,
  )
