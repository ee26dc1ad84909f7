"""Rules move steered parameters once a step, in any optimizer and loop."""

import functools
import math

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.moe import experts, layer, mlp, routing
from softmoe.moe.routers import bias_balanced, expert_threshold, relu
from softmoe.optim import steered

P = jax.P
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
WIDTH, EXPERTS, RATE = 4, 4, 0.05
KEYS = jax.random.split(jax.random.key(0), 8)


class Averaged(nnx.Module):
  """Sends all to all, and keeps what the mean token is and was."""

  num_experts = EXPERTS

  def __init__(self):
    zeros = jnp.zeros(WIDTH)
    self.last = routing.Steered(zeros, rule=routing.SetTo())
    self.mean = routing.Steered(zeros, rule=routing.MoveAverage(0.75))

  def __call__(self, x, *, mask=None, key=None):
    mean = routing.mean_over_tokens(x, mask)
    gates = jnp.ones((len(x), EXPERTS))
    wanted = gates > 0 if mask is None else jnp.tile(mask[:, None], EXPERTS)
    priority = jnp.where(wanted, 0.0, -jnp.inf)
    return routing.Assignment(gates, priority), routing.Aux(
      steer={'last': mean, 'mean': mean}
    )


def bias():
  return bias_balanced.BiasBalanced(
    WIDTH, EXPERTS, k=1, rate=RATE, rngs=nnx.Rngs(0)
  )


def sparse():
  return relu.ReLURouter(
    WIDTH, EXPERTS, k=2, coefficient=1e-3, rngs=nnx.Rngs(0)
  )


def solved():
  return bias_balanced.BiasBalanced(
    WIDTH, EXPERTS, k=1, balance_by='quantile', rngs=nnx.Rngs(0)
  )


def cutoffs():
  return expert_threshold.ExpertThreshold(
    WIDTH, EXPERTS, k=1, decay=0.5, rngs=nnx.Rngs(0)
  )


def make(router):
  expert = lambda rngs: mlp.Mlp(WIDTH, 3, rngs=rngs)
  return layer.MoE(router, experts.Experts(expert, EXPERTS, rngs=nnx.Rngs(0)))


def tokens(i, b=2, m=16):
  return jax.random.normal(KEYS[i], (b, m, WIDTH)) + 1


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def gradient(graphdef, params, x, mask=None):
  def loss(params):
    y, aux = nnx.merge(graphdef, params)(x, mask)
    return jnp.mean(y**2) + sum(aux['losses'].values()), aux

  return jax.grad(loss, has_aux=True)(params)


def train(model, steps, m=16):
  graphdef, params = nnx.split(model, nnx.Param)
  optimizer = steered.steered(optax.adam(1e-2), model)
  state = optimizer.init(params)
  history = []
  for i in range(steps):
    gradients, aux = gradient(graphdef, params, tokens(i % 8, m=m))
    updates, state = jax.jit(optimizer.update)(gradients, state, params)
    params = optax.apply_updates(params, updates)
    history.append(aux['metrics'])
  return params, history


@pytest.mark.slow
def test_a_plain_loop_balances_the_load():
  params, history = train(make(bias()), 60)
  share = [float(metrics['receive_max']) for metrics in history]
  assert np.mean(share[:4]) > 0.5
  assert np.mean(share[-8:]) < 0.4
  # Nothing but whole steps.
  moved = params['router']['bias'][...] / RATE
  np.testing.assert_allclose(moved, np.round(moved), atol=1e-4)
  assert np.any(moved != 0)


def test_a_plain_loop_steers_the_coefficient():
  params, history = train(make(sparse()), 20)
  steps = np.sign([float(metrics['wanted']) - 2 for metrics in history])
  expected = math.log(1e-3) + math.log(1.2) * np.sum(steps)
  log = params['router']['log_coefficient'][...]
  np.testing.assert_allclose(log, expected, rtol=1e-5)


@pytest.mark.parametrize('make_router', [solved, cutoffs])
def test_a_plain_loop_evens_the_load_at_once(make_router):
  _, history = train(make(make_router()), 6, m=256)
  share = [float(metrics['receive_max']) for metrics in history]
  wanted = [float(metrics['wanted']) for metrics in history]
  assert share[0] > 0.39
  assert np.mean(share[2:]) < 0.36
  assert np.mean(wanted[2:]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
  'make_router', [pytest.param(solved, marks=pytest.mark.slow), cutoffs]
)
def test_micro_batches_steer_as_one_batch_does(make_router):
  model = make(make_router())
  graphdef, params = nnx.split(model, nnx.Param)
  x = tokens(0, b=4)
  whole, aux = gradient(graphdef, params, x)
  halves = [gradient(graphdef, params, x[i : i + 2]) for i in (0, 2)]
  for name, rule in steered.rules(model)['router'].items():
    if rule is None:
      continue
    of = lambda tree, name=name: np.asarray(tree['router'][name][...])
    weights = [part['weights'].get(f'steer_{name}', 1) for _, part in halves]
    total = aux['weights'].get(f'steer_{name}', 1)
    added = sum(w * of(g) for w, (g, _) in zip(weights, halves, strict=True))
    # Counts are equal to the bit.
    rtol = 1e-6 if rule.mean else 0
    np.testing.assert_allclose(added / total, of(whole), rtol=rtol)


@pytest.mark.slow
@pytest.mark.parametrize('make_router', [bias, sparse])
def test_the_sign_of_the_sum_over_micro_batches_decides(make_router):
  """One part outvotes the other by more tokens, not by one vote each."""
  model = make(make_router())
  graphdef, params = nnx.split(model, nnx.Param)
  name = 'bias' if make_router is bias else 'log_coefficient'
  of = lambda tree: np.asarray(tree['router'][name][...])
  parts = [tokens(0, m=40), -tokens(1, m=4), -tokens(2, m=4)]
  apart = [gradient(graphdef, params, x)[0] for x in parts]
  total = jax.tree.map(lambda *g: sum(g), *apart)
  optimizer = steered.steered(optax.adam(1e-2), model)
  updates, _ = optimizer.update(total, optimizer.init(params), params)
  rate = params['router'][name].rule.rate
  summed = sum(map(of, apart))
  np.testing.assert_allclose(of(updates), -rate * np.sign(summed), rtol=1e-5)
  votes = sum(np.sign(of(g)) for g in apart)
  old = -rate * votes / len(apart)
  assert not np.allclose(of(updates), old, atol=0.1 * rate)


def test_set_to_and_move_average():
  model = make(Averaged())
  graphdef, params = nnx.split(model, nnx.Param)
  optimizer = steered.steered(optax.sgd(0.1), model)
  state, average = optimizer.init(params), np.zeros(WIDTH)
  for i in range(3):
    x = tokens(i)
    # The second group is of nothing but padding: no part in the mean.
    mask = jnp.arange(2)[:, None] < jnp.full((1, 16), 2 - i % 2)
    gradients, aux = gradient(graphdef, params, x, mask)
    assert aux['losses']['steer_mean'] == 0
    assert aux['weights']['steer_mean'] == aux['weights']['steer_last']
    assert aux['weights']['steer_mean'] == 2 - i % 2
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    mean = np.mean(x[: 2 - i % 2], axis=(0, 1))
    average = 0.75 * average + 0.25 * mean
    router = params['router']
    np.testing.assert_allclose(router['last'][...], mean, rtol=1e-5)
    np.testing.assert_allclose(router['mean'][...], average, rtol=1e-5)


@pytest.mark.parametrize(
  'axes',
  [
    ('data', 'expert'),
    pytest.param(('data',), marks=pytest.mark.slow),
    pytest.param((), marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_statistics_are_those_of_the_whole_batch_on_a_mesh(mesh, axes):
  model, x = make(Averaged()), tokens(0, b=8)
  graphdef, params = nnx.split(model, nnx.Param)
  expected, _ = gradient(graphdef, params, x)
  mesh(2, 4)
  actual, aux = gradient(graphdef, params, jax.device_put(x, P(axes or None)))
  for name in ('last', 'mean'):
    np.testing.assert_allclose(
      actual['router'][name][...], expected['router'][name][...], rtol=1e-5
    )
  assert aux['weights']['steer_mean'] == 8


def test_weights_average_micro_batches_and_have_no_gradient():
  graphdef, params = nnx.split(make(sparse()), nnx.Param)
  x = tokens(0, b=3)
  mask = jnp.arange(16)[None] < jnp.array([16, 5, 0])[:, None]
  _, whole = gradient(graphdef, params, x, mask)
  parts = [
    gradient(graphdef, params, x[i : i + 1], mask[i : i + 1])[1]
    for i in range(3)
  ]
  assert set(whole['weights']) == set(whole['metrics']) | {'sparsity'}
  assert whole['weights']['sparsity'] == 2  # groups
  assert whole['weights']['wanted'] == 21  # tokens
  # What is cut into chunks depends on the batch.
  for name in set(whole['weights']) - {'executed', 'flops'}:
    kind = 'losses' if name in whole['losses'] else 'metrics'
    total = sum(p['weights'][name] * p[kind][name] for p in parts)
    total /= sum(p['weights'][name] for p in parts)
    np.testing.assert_allclose(total, whole[kind][name], rtol=1e-5)

  def weight(x):
    return sum(nnx.merge(graphdef, params)(x)[1]['weights'].values())

  assert np.all(jax.jit(jax.grad(weight))(x) == 0)


def test_the_optimizer_sees_no_statistic():
  model = make(bias())
  _, params = nnx.split(model, nnx.Param)
  gradients = jax.tree.map(jnp.ones_like, params)
  clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
  moves = []
  for statistic in (0.0, 1e6):
    gradients['router']['bias'][...] = jnp.full(EXPERTS, statistic)
    optimizer = steered.steered(clipped, model)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    moves.append(updates['router']['kernel'][...])
  np.testing.assert_array_equal(*moves)


def test_rules_of_modules_states_and_shapes():
  model = make(bias())
  abstract = jax.eval_shape(lambda: model)
  rule = routing.StepBySign(RATE)
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  for given in (model, abstract, nnx.state(model, nnx.Param)):
    rules = steered.rules(given)
    assert rules['router'] == {'bias': rule, 'kernel': None}
    count = jax.tree.map(lambda _, rule: rule is not None, params, rules)
    assert sum(jax.tree.leaves(count)) == 1
  assert steered.rules({'a': model.router.bias}) == {'a': rule}
  updates = []
  for given in (model, abstract, steered.rules(model)):
    optimizer = steered.steered(optax.adam(1.0), given)
    updates.append(optimizer.update(params, optimizer.init(params), params)[0])
  jax.tree.map(np.testing.assert_array_equal, *updates[:2])
  jax.tree.map(np.testing.assert_array_equal, *updates[1:])


def test_parameters_must_be_given():
  optimizer = steered.steered(optax.adam(1.0), make(bias()))
  with pytest.raises(UserError, match='params: got None; the parameters'):
    optimizer.update({}, ())


def test_what_is_no_steered_parameter_is_named():
  class Wrong(Averaged):
    def __init__(self):
      super().__init__()
      self.mean = nnx.Param(jnp.zeros(WIDTH))

  with pytest.raises(UserError, match="router.mean: got 'Param'; a `routing"):
    make(Wrong())(tokens(0))
