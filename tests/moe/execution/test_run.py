"""Two ways to run experts without dropping, against every expert on all."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.moe import experts, layer, mlp, routing
from softmoe.moe.execution import pairs
from softmoe.moe.routers import bias_balanced, tokens_choice

P = jax.P
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
B, M, WIDTH, EXPERTS, HIDDEN = 8, 5, 6, 8, 7
OWNED = EXPERTS // 4  # experts of one device of the mesh (2, 4)


class Table(nnx.Module):
  """Looks gates up by token, so that theirs are gradients of parameters."""

  num_experts = EXPERTS

  def __init__(self, choices):
    self.choices = choices
    self.gates = nnx.Param(jnp.zeros((B * M, EXPERTS)))

  def __call__(self, x, *, mask=None, key=None, token_ids, wanted):
    return routing.Assignment(
      gates=self.gates[...][token_ids],
      priority=jnp.where(wanted[token_ids], 0.0, -jnp.inf),
      choices=self.choices,
    ), routing.Aux()


ROUTERS = {
  'table of 2': lambda: Table(2),
  'table of all': lambda: Table(None),
  'bias_balanced': lambda: bias_balanced.BiasBalanced(
    WIDTH, EXPERTS, k=2, rngs=nnx.Rngs(0)
  ),
  'tokens_choice': lambda: tokens_choice.TokensChoice(
    WIDTH, EXPERTS, k=2, capacity_factor=None, rngs=nnx.Rngs(0)
  ),
}


def make(router, implementation='auto', dtype=None):
  expert = lambda rngs: mlp.Mlp(WIDTH, HIDDEN, dtype=dtype, rngs=rngs)
  return layer.MoE(
    ROUTERS[router](),
    experts.Experts(expert, EXPERTS, rngs=nnx.Rngs(0)),
    implementation=implementation,
  )


def draw(router, seed):
  """Returns parameters and tokens, skewed, and weights of the outputs."""
  rng = np.random.default_rng(seed)
  normal = lambda shape: rng.normal(size=shape).astype(np.float32)
  params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: make(router))))
  params = jax.tree.map(
    lambda w: normal(w.shape) * np.float32(w.shape[0] ** -0.5), params
  )
  direction = normal(WIDTH)
  if 'bias' in params['router']:
    params['router']['bias'] = np.linspace(-4, 4, EXPERTS, dtype=np.float32)
  if 'kernel' in params['router']:
    kernel = params['router']['kernel'] + 3 * np.outer(
      direction, np.linspace(-1, 1, EXPERTS)
    )
    params['router']['kernel'] = np.float32(kernel)
  x = normal((B, M, WIDTH)) + (
    3 * direction if router == 'tokens_choice' else 0
  )
  return params, x, normal(x.shape)


def draw_wanted(kind, choices, seed):
  """Returns which experts a token wants, at most `choices`."""
  rng = np.random.default_rng(seed)
  wanted = np.zeros((B * M, EXPERTS), bool)
  if kind == 'random':
    wanted[np.arange(B * M), rng.integers(EXPERTS, size=B * M)] = True
    wanted[::2] |= rng.random((B * M // 2, EXPERTS)) < 0.5
  if kind == 'skewed':
    wanted[:, 3] = True
    wanted[::7, 5] = True
  if kind == 'one device':
    wanted[:, OWNED : 2 * OWNED] = True
  if kind == 'most':
    wanted[:, -(choices or EXPERTS) :] = True
  rank = np.cumsum(wanted, axis=1)
  return wanted & (rank <= (choices or EXPERTS))


KINDS = ('random', 'skewed', 'one device', 'most', 'nothing')


@functools.cache
def compiled(router, implementation, sizes, dtype=None):
  """Returns a layer with gradients, for the mesh of these sizes, in force."""
  graphdef = nnx.graphdef(
    nnx.eval_shape(lambda: make(router, implementation, dtype))
  )

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(params, x, dy, wanted):
    ids = jnp.arange(B * M).reshape(B, M)
    if sizes:
      ids = jax.reshard(ids, P(('data', 'expert')))
    table = dict(token_ids=ids, wanted=wanted) if 'table' in router else {}

    def objective(params, x):
      y, aux = nnx.merge(graphdef, params)(x, **table)
      return jnp.sum(y.astype(jnp.float32) * dy), (y, aux['metrics'])

    grads, (y, metrics) = jax.grad(objective, (0, 1), has_aux=True)(params, x)
    return y, grads, metrics

  return run


def place(params, x, dy, wanted, sizes):
  if sizes is None:
    return params, x, dy, wanted
  put = lambda spec: lambda v: jax.device_put(v, spec)
  params = {
    name: jax.tree.map(put(P('expert') if name == 'experts' else P()), tree)
    for name, tree in params.items()
  }
  x, dy = map(put(P(('data', 'expert'))), (x, dy))
  return params, x, dy, jax.device_put(wanted, P())


@functools.cache
def reference():
  """Returns every expert's outputs on all tokens, weighted, and gradients."""
  graphdef = nnx.graphdef(nnx.eval_shape(lambda: make('table of all')).experts)

  def run(params, x, wanted):
    stack = nnx.merge(graphdef, params['experts'])
    flat = x.reshape(-1, WIDTH)
    y = stack(jnp.broadcast_to(flat, (EXPERTS, *flat.shape)))
    gates = jnp.where(wanted, params['router']['gates'], 0)
    return jnp.einsum('te,etd->td', gates, y).reshape(x.shape)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def call(params, x, dy, wanted):
    y, pull = jax.vjp(lambda p, x: run(p, x, wanted), params, x)
    return y, pull(dy)

  return call


def assert_close(actual, expected):
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5),
    actual,
    expected,
  )


def check_counts(wanted, implementation, metrics):
  per_token = np.sum(wanted) / (B * M)
  for name in ('wanted', 'granted'):
    np.testing.assert_allclose(metrics[name], per_token, rtol=1e-6)
  if implementation == 'grouped':
    np.testing.assert_allclose(metrics['executed'], per_token, rtol=1e-6)
  else:
    assert metrics['executed'] >= metrics['wanted']


@pytest.mark.parametrize('implementation', ['fused', 'grouped'])
@pytest.mark.parametrize(
  'router, sizes',
  [
    ('table of 2', None),
    ('table of 2', (2, 4)),
    pytest.param('table of all', (2, 4), marks=pytest.mark.slow),
  ],
)
def test_given_routing(mesh, sizes, router, implementation):
  choices = 2 if router == 'table of 2' else None
  cases = []
  for seed, kind in enumerate(KINDS):
    wanted = draw_wanted(kind, choices, seed)
    case = *draw(router, seed), wanted
    cases.append((case, reference()(*case)))
  if sizes:
    mesh(*sizes)
  for case, expected in cases:
    y, gradients, metrics = compiled(router, implementation, sizes)(
      *place(*case, sizes)
    )
    assert_close((y, gradients), expected)
    check_counts(case[-1], implementation, metrics)


@pytest.mark.parametrize(
  'router, sizes',
  [
    ('bias_balanced', None),
    pytest.param('bias_balanced', (1, 1), marks=pytest.mark.slow),
    pytest.param('bias_balanced', (2, 4), marks=pytest.mark.slow),
    pytest.param('bias_balanced', (4, 2), marks=pytest.mark.slow),
    pytest.param('tokens_choice', None, marks=pytest.mark.slow),
    pytest.param('tokens_choice', (2, 4), marks=pytest.mark.slow),
  ],
)
def test_routers_that_bound_their_choices(mesh, sizes, router):
  if sizes:
    mesh(*sizes)
  for seed in range(3):
    case = place(*draw(router, seed), None, sizes)
    fused, grouped = (
      compiled(router, implementation, sizes)(*case)
      for implementation in ('fused', 'grouped')
    )
    assert_close(grouped[:2], fused[:2])
    assert grouped[2]['executed'] == grouped[2]['wanted'] == 2
    busy = np.any(fused[1][0]['experts']['stacked']['down']['bias'], axis=-1)
    assert 0 < np.sum(busy) < EXPERTS  # some experts get nothing


@pytest.mark.parametrize(
  'implementation',
  ['fused', pytest.param('grouped', marks=pytest.mark.slow)],
)
def test_bfloat16(mesh, implementation):
  wanted = draw_wanted('random', 2, 0)
  params, x, dy = draw('table of 2', 0)
  x = np.asarray(x, jnp.bfloat16)
  expected = reference()(params, np.float32(x), dy, wanted)
  mesh(2, 4)
  run = compiled('table of 2', implementation, (2, 4), jnp.bfloat16)
  y, gradients, _ = run(*place(params, x, dy, wanted, (2, 4)))
  assert y.dtype == gradients[1].dtype == jnp.bfloat16
  error = jax.tree.map(
    lambda a, e: np.max(np.abs(np.float32(a) - e)) / np.max(np.abs(e)),
    (y, gradients),
    jax.tree.map(np.float32, expected),
  )
  assert max(jax.tree.leaves(error)) < 0.02


def linear_experts():
  expert = lambda rngs: nnx.Linear(WIDTH, WIDTH, rngs=rngs)
  return experts.Experts(expert, EXPERTS, rngs=nnx.Rngs(0))


def test_choice():
  mlps = nnx.eval_shape(lambda: make('table of 2').experts)
  linears = nnx.eval_shape(linear_experts)
  platforms = 'cpu', 'gpu', 'tpu'
  choices = lambda stack: [pairs.choose(p, stack) for p in platforms]
  assert choices(mlps) == ['fused', 'grouped', 'grouped']
  assert choices(linears) == ['fused'] * 3


def test_experts_that_cannot_be_grouped():
  router = Table(2)
  with pytest.raises(UserError, match="implementation: got 'grouped'; 'fused'"):
    layer.MoE(router, linear_experts(), implementation='grouped')
  for implementation in ('auto', 'fused'):
    layer.MoE(router, linear_experts(), implementation=implementation)


def lowered_for(platform, sizes):
  """Returns the operations of a layer on a mesh that need not be here."""
  device = jax.sharding.AbstractDevice(
    device_kind=platform, num_cores=None, platform=platform
  )
  explicit = (jax.sharding.AxisType.Explicit,) * 2
  mesh = jax.sharding.AbstractMesh(
    sizes, ('data', 'expert'), explicit, abstract_device=device
  )
  with jax.sharding.use_abstract_mesh(mesh):
    return str(jax.make_jaxpr(make_and_apply)())


def make_and_apply():
  x = jax.reshard(jnp.ones((B, M, WIDTH)), P(('data', 'expert')))
  return make('bias_balanced')(x)[0]


def test_the_mesh_says_what_to_compile_for():
  for sizes in ((2, 4), (1, 1)):
    tpu, cpu = (lowered_for(platform, sizes) for platform in ('tpu', 'cpu'))
    assert ('ragged_all_to_all' in tpu) == (sizes == (2, 4))
    assert 'ragged_dot' in tpu
    assert 'ragged' not in cpu
