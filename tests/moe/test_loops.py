"""Every router through the layer, against loops over tokens and experts.

A router is trusted with one group (its own tests see to that); all that the
layer adds is written here once more, in NumPy and float32, gradients included.
"""

import functools
import math
import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import config as config_lib
from softmoe.models import mixtures
from softmoe.moe import hashing, layer, routing

P = jax.P
MESHES = [None, (1, 1), (2, 4), (4, 2)]
VOCABULARY = 11
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time

TOP_2 = dict(
  router='tokens_choice',
  k=2,
  noise_std=2.0,
  losses=(('importance', 0.3), ('load', 0.2), ('z', 0.1)),
)
EXPERTS_CHOICE = dict(router='experts_choice', capacity_factor=1.5)
THRESHOLD = dict(router='threshold', group_size=2)
BIAS_BALANCED = dict(router='bias_balanced', k=2)
CASES = {
  'soft': dict(router='soft', slots_per_expert=2, group_size=2),
  'uniform': dict(router='uniform'),
  'uniform_soft': dict(router='uniform_soft', shared_dim=4),
  'soft_uniform': dict(router='soft_uniform'),
  'identity': dict(router='identity'),
  'mixture_of_tokens': dict(router='mixture_of_tokens', group_size=2),
  'tokens_choice': TOP_2 | dict(capacity_factor=0.6, group_size=2),
  'tokens_choice dropless': TOP_2 | dict(shared_dim=4, normalize=True),
  'experts_choice': EXPERTS_CHOICE | dict(group_size=2, noise_std=2.0),
  'threshold': THRESHOLD | dict(capacity_factor=1.2, threshold=0.7),
  'threshold dropless': THRESHOLD | dict(threshold=0.6),
  'bias_balanced': BIAS_BALANCED | dict(capacity_factor=0.8),
  'bias_balanced dropless': BIAS_BALANCED | dict(shared_dim=4),
  'relu': dict(router='relu', k=2, group_size=2),
  'hash': dict(router='hash'),
  # As accelerators do it.
  'tokens_choice grouped': TOP_2 | dict(group_size=2),
  'hash grouped': dict(router='hash'),
}
CAPACITY = {'tokens_choice', 'experts_choice', 'threshold', 'bias_balanced'}
GROUPED = {'tokens_choice grouped', 'hash grouped'}
DROPLESS = {name for name in CASES if 'dropless' in name} | {'relu', 'hash'}
SLOTS = set(CASES) - CAPACITY - DROPLESS - GROUPED

# Examples, tokens, width, experts, hidden width.
SHAPES = [
  (2, 1, 4, 1, 3),
  (2, 1, 5, 3, 4),
  (2, 7, 4, 1, 5),
  (2, 8, 4, 4, 6),
  (4, 5, 6, 5, 7),
  (2, 9, 8, 8, 8),
  (2, 6, 4, 16, 4),
  (4, 3, 8, 7, 5),
  (2, 11, 3, 12, 4),
  (2, 4, 8, 10, 3),
  (6, 2, 8, 3, 5),
  (2, 10, 2, 9, 4),
]
MAIN = (
  'soft',
  'tokens_choice',
  'tokens_choice dropless',
  'experts_choice',
  'threshold',
  'threshold dropless',
)


def on_mesh(name):
  """Returns a shape that fills the groups of eight devices."""
  return 8 * CASES[name].get('group_size', 1), 5, 6, 8, 7


@functools.cache
def make(name, shape):
  """Returns a layer whose parameters are shapes without numbers."""
  _, _, width, num_experts, hidden = shape
  fields = CASES[name] | dict(num_experts=num_experts)
  fields['k'] = min(fields.get('k', 1), num_experts)
  hashed = fields['router'] == 'hash'
  fields['router'] = 'relu' if hashed else fields['router']
  moe = config_lib.MoEConfig(**fields)
  config = config_lib.ModelConfig(width=width, mlp_dim=hidden, moe=moe)
  module = nnx.eval_shape(lambda: mixtures.make_moe(config, nnx.Rngs(0)))
  if hashed:  # not in a config: images have no token ids
    router = hashing.HashRouter(num_experts, VOCABULARY)
    module = layer.MoE(router, module.experts)
  module.implementation = 'grouped' if name in GROUPED else 'auto'
  return module


@functools.cache
def draw(name, shape, seed):
  """Returns parameters, tokens, mask, ids, key and weights of the outputs."""
  b, m, width, _, _ = shape
  rng = np.random.default_rng((seed, *shape))
  normal = lambda shape: rng.normal(size=shape).astype(np.float32)
  sharpness, skew = rng.uniform(0.5, 3), rng.choice([0, 0, 2])

  def weight(path, leaf):
    # Small in experts: where their GELU saturates all is rounding.
    scale = sharpness if path[0].key == 'router' else 0.5
    size = leaf.shape[-2] if leaf.ndim > 1 else 1
    return normal(leaf.shape) * np.float32(scale * size**-0.5)

  params = nnx.to_pure_dict(nnx.state(make(name, shape)))
  params = jax.tree_util.tree_map_with_path(weight, params)
  x = normal((b, m, width)) + np.float32(skew) * normal(width)
  mask = rng.random((b, m)) < rng.choice([0.6, 1.0])
  mask[:, 0] = True
  busiest = rng.choice([2, VOCABULARY])
  ids = rng.integers(0, busiest, (b, m)) if 'hash' in name else None
  return params, x, mask, ids, jax.random.key(seed), normal(x.shape)


def run(graphdef, params, x, mask, ids, key, dy):
  """Returns the layer's output, aux, and gradients of parameters and tokens."""

  def objective(params, x):
    y, aux = nnx.merge(graphdef, params)(x, mask, key=key, token_ids=ids)
    return jnp.sum(y * dy) + sum(aux['losses'].values()), (y, aux)

  gradients, (y, aux) = jax.grad(objective, (0, 1), has_aux=True)(params, x)
  return y, aux, gradients


@functools.cache
def compiled(name, shape, sizes):
  """Returns `run` for the mesh of these sizes, which is in force."""
  graphdef = nnx.graphdef(make(name, shape))
  arguments = place(draw(name, shape, 0), sizes)
  jitted = jax.jit(functools.partial(run, graphdef), compiler_options=QUICK)
  return jitted.lower(*arguments).compile()


def place(case, sizes):
  if sizes is None:
    return case
  params, *tokens, key, dy = case
  put = lambda spec: lambda v: jax.device_put(v, spec)
  params = {
    name: jax.tree.map(put(P('expert') if name == 'experts' else P()), tree)
    for name, tree in params.items()
  }
  tokens, dy = jax.tree.map(put(P(('data', 'expert'))), (tokens, dy))
  return params, *tokens, jax.device_put(key, P()), dy


@functools.cache
def router_of(name, shape):
  """Returns a function that routes one group and pulls a gradient back."""
  graphdef = nnx.graphdef(make(name, shape).router)

  def objective(params, x, mask, ids, key, weights, share):
    options = {} if ids is None else {'token_ids': ids}
    router = nnx.merge(graphdef, params)
    routed, aux = router(x, mask=mask, key=key, **options)
    value = share * sum(aux.losses.values())
    for w, output in zip(weights, weights_of(routed), strict=False):
      value += jnp.sum(w * output)
    return value, (routed, aux)

  return jax.jit(
    jax.grad(objective, (0, 1), has_aux=True), compiler_options=QUICK
  )


def weights_of(routed):
  dense = isinstance(routed, routing.Slots)
  return tuple(routed) if dense else (routed.gates,)


def mlp_in_numpy(w, x):
  """Returns an expert's output, and what adds to the gradients of `w`."""
  c = np.float32(math.sqrt(2 / math.pi))
  h = x @ w['up']['kernel'] + w['up']['bias']
  t = np.tanh(c * (h + 0.044715 * h**3))
  slope = (1 + t + h * (1 - t**2) * c * (1 + 0.134145 * h**2)) / 2
  hidden = h * (1 + t) / 2
  y = hidden @ w['down']['kernel'] + w['down']['bias']

  def pull(dy, dw):
    dh = slope * (w['down']['kernel'] @ dy)
    for name, inputs, d in (('down', hidden, dy), ('up', x, dh)):
      dw[name]['kernel'] += np.outer(inputs, d)
      dw[name]['bias'] += d
    return w['up']['kernel'] @ dh

  return y, pull


def through_slots(routed, x, dy, expert):
  """Returns y, the number of rows computed, dx and those of the weights."""
  dispatch, combine = map(np.asarray, routed)
  y, dx = np.zeros_like(dy), np.zeros_like(x)
  dweights = np.zeros_like(dispatch), np.zeros_like(combine)
  for e, s in np.ndindex(dispatch.shape[1:]):
    slot = sum(dispatch[t, e, s] * x[t] for t in range(len(x)))
    output, pull = expert(e, slot)
    dslot = pull(sum(combine[t, e, s] * dy[t] for t in range(len(x))))
    for t in range(len(x)):
      y[t] += combine[t, e, s] * output
      dx[t] += dispatch[t, e, s] * dslot
      dweights[0][t, e, s] = x[t] @ dslot
      dweights[1][t, e, s] = dy[t] @ output
  return y, {}, dx, dweights


def through_experts(routed, x, dy, expert):
  """Returns y, counts, dx and the gradient of the gates."""
  gates, priority = np.asarray(routed.gates), np.asarray(routed.priority)
  y, dx, dgates = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(gates)
  counts = {'wanted': 0, 'granted': 0}
  for e in range(gates.shape[1]):
    queue = [t for t in range(len(x)) if priority[t, e] > -np.inf]
    queue.sort(key=lambda t: (-priority[t, e], t))
    counts['wanted'] += len(queue)
    for t in queue[: routed.capacity]:
      output, pull = expert(e, x[t])
      counts['granted'] += 1
      y[t] += gates[t, e] * output
      dx[t] += pull(gates[t, e] * dy[t])
      dgates[t, e] = dy[t] @ output
  return y, counts, dx, (dgates,)


def groups_of(b, m, size, across):
  """Returns the (example, position) pairs of every group."""
  blocks = [range(i, i + size) for i in range(0, b, size)]
  if across:
    return [[(i, t) for i in block] for block in blocks for t in range(m)]
  return [[(i, t) for i in block for t in range(m)] for block in blocks]


@functools.cache
def by_loops(name, shape, seed):
  """Returns what `run` returns, and the layer's counts of pairs."""
  params, x, mask, ids, key, dy = draw(name, shape, seed)
  module, route = make(name, shape), router_of(name, shape)
  across = getattr(module.router, 'across_examples', False)
  size = CASES[name].get('group_size', 1)
  x, dy = np.where(mask[..., None], x, 0), np.where(mask[..., None], dy, 0)
  y, dx = np.zeros_like(dy), np.zeros_like(x)
  dparams = jax.tree.map(np.zeros_like, params)
  keys = jax.random.split(key, len(x))
  losses, counts, errors = {}, {'wanted': 0, 'granted': 0}, []
  groups = groups_of(*x.shape[:2], size, across)

  def expert(e, x):
    take = lambda tree: jax.tree.map(lambda w: w[e], tree['experts']['stacked'])
    y, pull = mlp_in_numpy(take(params), x)
    return y, lambda dy: pull(dy, take(dparams))

  for group in groups:
    at = tuple(np.array(group).T)
    routed_by = (
      params.get('router', {}),
      x[at],
      mask[at],
      None if ids is None else ids[at],
      keys[group[0][0]],
    )
    share = np.float32(1 / len(groups))
    _, (routed, aux) = route(*routed_by, (), share)
    dense = isinstance(routed, routing.Slots)
    through = through_slots if dense else through_experts
    y[at], count, dx[at], weights = through(routed, x[at], dy[at], expert)
    (drouter, dgroup), _ = route(*routed_by, weights, share)
    dx[at] += dgroup
    dparams |= {'router': add(dparams['router'], drouter)} if drouter else {}
    add_counts(losses, {k: v * share for k, v in aux.losses.items()})
    add_counts(counts, count)
    if not dense:
      errors.append(errors_of(module.router, routed, mask[at]))
  if 'shared' in params:
    for at in zip(*np.nonzero(mask), strict=True):
      output, pull = mlp_in_numpy(params['shared'], x[at])
      y[at] += output
      dx[at] += pull(dy[at], dparams['shared'])
  steer(module.router, dparams.get('router', {}), losses, errors)
  y, dx = (np.where(mask[..., None], v, 0) for v in (y, dx))
  counts = {k: v / np.sum(mask) for k, v in counts.items()}
  return y, {'losses': losses, 'counts': counts}, (dparams, dx)


def add(a, b):
  return jax.tree.map(lambda a, b: a + np.asarray(b), a, b)


def add_counts(totals, values):
  for name, value in values.items():
    totals[name] = totals.get(name, 0) + value


def errors_of(router, routed, mask):
  """Returns the group's share in what is steered, in whole numbers."""
  wanted = np.asarray(routed.wanted())
  assert not np.any(wanted[~mask])
  counts = np.sum(wanted, axis=0)
  return {
    'bias': len(counts) * counts - np.sum(counts),  # load over the mean load
    'log_coefficient': getattr(router, 'k', 0) * np.sum(mask) - np.sum(counts),
  }


def steer(router, dparams, losses, errors):
  """Adds the step of what is steered, against the sign of the mean error."""
  for name, rate in getattr(router, 'steer_rates', {}).items():
    total = sum(error[name] for error in errors)
    assert np.all(dparams[name] == 0)  # nothing else moves it
    dparams[name] = np.float32(rate) * np.sign(total).astype(np.float32)
    losses[f'steer_{name}'] = 0.0


def check(name, shape, seed, sizes):
  case = place(draw(name, shape, seed), sizes)
  y, aux, gradients = compiled(name, shape, sizes)(*case)
  expected_y, expected_aux, expected_gradients = by_loops(name, shape, seed)
  assert_close(y, expected_y)
  assert_close(aux['losses'], expected_aux['losses'])
  assert_close(gradients, expected_gradients)
  check_metrics(name, shape, aux['metrics'], expected_aux['counts'], case)


def assert_close(actual, expected):
  """Allows float32 rounding of sums of the size that the array has."""

  def one(a, e):
    size = max(1, np.max(np.abs(e)))
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * size)

  jax.tree.map(one, actual, expected)


def check_metrics(name, shape, metrics, counts, case):
  module, (b, m, width, num_experts, hidden) = make(name, shape), shape
  flops = 4 * width * hidden * metrics['executed']
  np.testing.assert_allclose(metrics['flops'], flops, rtol=1e-6)
  if name in DROPLESS | GROUPED:
    assert metrics['granted'] == metrics['wanted'] <= metrics['executed']
  if name not in SLOTS:
    for count in ('wanted', 'granted'):
      np.testing.assert_allclose(metrics[count], counts[count], rtol=1e-6)
  else:
    size = CASES[name].get('group_size', 1)
    groups = b * m // size if name == 'mixture_of_tokens' else b // size
    slots = getattr(module.router, 'slots_per_expert', 1)
    executed = groups * num_experts * slots / np.sum(case[2])
    np.testing.assert_allclose(metrics['executed'], executed, rtol=1e-6)


def test_no_router_is_left_out():
  assert {f['router'] for f in CASES.values()} == {*mixtures.ROUTERS, 'hash'}


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_equals_loops_forward_and_gradient(mesh, sizes, name):
  if sizes:
    mesh(*sizes)
  for seed in range(6):
    check(name, on_mesh(name), seed, sizes)


@pytest.mark.parametrize('name', MAIN)
def test_200_random_cases(name):
  first = MAIN.index(name) % 4
  for shape in SHAPES[first::4]:
    for seed in range(67):
      check(name, shape, seed, None)


def count(text, operation):
  return text.count(f' {operation}(')


@pytest.mark.parametrize('name', sorted(SLOTS | CAPACITY))
def test_slots_and_buffers_travel_by_two_all_to_alls_a_direction(mesh, name):
  mesh(2, 4)
  text = compiled(name, on_mesh(name), (2, 4)).as_text()
  assert count(text, 'all-to-all') == 4
  for operation in ('all-gather', 'reduce-scatter', 'collective-permute'):
    assert count(text, operation) == 0


@pytest.mark.parametrize('name', ['soft', 'tokens_choice'])
def test_forward_has_two_all_to_alls(mesh, name):
  mesh(2, 4)
  graphdef = nnx.graphdef(make(name, on_mesh(name)))
  params, x, mask, _, key, _ = place(draw(name, on_mesh(name), 0), (2, 4))
  forward = jax.jit(
    lambda params, x: nnx.merge(graphdef, params)(x, mask, key=key),
    compiler_options=QUICK,
  )
  text = forward.lower(params, x).compile().as_text()
  assert count(text, 'all-to-all') == 2
  assert count(text, 'all-gather') == 0


@pytest.mark.parametrize('name', sorted(DROPLESS | GROUPED))
def test_dropless_gathers_tokens_and_never_weights(mesh, name):
  mesh(2, 4)
  text = compiled(name, on_mesh(name), (2, 4)).as_text()
  gathered = re.findall(r'= f32\[([\d,]*)\]\S* all-gather\(', text)
  b, m, width, num_experts, _ = on_mesh(name)
  if name in DROPLESS:
    tokens = f'{b * m // 2},{width}'  # of the four devices that share
    assert gathered == [tokens, tokens]  # the experts; and their gradients
    assert count(text, 'reduce-scatter') == 2
  # The weights of experts are (experts, inputs, outputs), (experts, outputs).
  assert gathered
  for shape in gathered:
    rows, columns = shape.split(',')
    assert int(columns) == width and int(rows) > num_experts


@pytest.mark.parametrize('name', CASES)
def test_gradients_of_experts_stay_where_experts_are(mesh, name):
  mesh(2, 4)
  case = place(draw(name, on_mesh(name), 0), (2, 4))
  gradients = compiled(name, on_mesh(name), (2, 4))(*case)[2][0]
  same = lambda g, w: g.sharding.is_equivalent_to(w.sharding, w.ndim)
  assert jax.tree.all(jax.tree.map(same, gradients, case[0]))
  for gradient in jax.tree.leaves(gradients['experts']):
    assert gradient.sharding.spec[0] == 'expert'


@pytest.mark.parametrize('name', ['bias_balanced', 'relu'])
@pytest.mark.parametrize('sizes', [None, (2, 4)], ids=str)
def test_steps_follow_the_whole_batch_and_a_balanced_one_has_none(
  mesh, sizes, name
):
  if sizes:
    mesh(*sizes)
  parameter = {'bias_balanced': 'bias', 'relu': 'log_coefficient'}[name]
  balanced = 0
  for seed in range(60):
    case = place(draw(name, on_mesh(name), seed), sizes)
    _, aux, gradients = compiled(name, on_mesh(name), sizes)(*case)
    step = by_loops(name, on_mesh(name), seed)[2][0]['router'][parameter]
    np.testing.assert_allclose(gradients[0]['router'][parameter], step)
    assert aux['losses'][f'steer_{parameter}'] == 0
    balanced += np.sum(step == 0)
  assert balanced or name == 'relu'  # one number: rarely a tie
