"""An MoE layer as loops over groups, tokens and experts, gradients included.

A router is trusted with one group (its own tests see to that); all that the
layer adds is written here once more, in NumPy and float32.
"""

import functools
import math

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from softmoe.moe import routing
from tests.moe import piece_loops
from tests.moe.layer_cases import CASES, QUICK, draw, make


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
  counts = {'wanted': 0, 'granted': 0, 'used_experts': 0}
  for e in range(gates.shape[1]):
    queue = [t for t in range(len(x)) if priority[t, e] > -np.inf]
    queue.sort(key=lambda t: (-priority[t, e], t))
    counts['wanted'] += len(queue)
    counts['used_experts'] += (len(queue) > 0) / gates.shape[1]
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
  case = draw(name, shape, seed)
  return by_loops_of(name, shape, case, np.zeros(case[2].shape, np.int32))


def by_loops_of(name, shape, case, segments):
  """Returns the same of a case whose tokens are of several documents."""
  params, x, mask, ids, key, dy = case
  module, route = make(name, shape), router_of(name, shape)
  across = getattr(module.router, 'across_examples', False)
  size = CASES[name].get('group_size', 1)
  x, dy = np.where(mask[..., None], x, 0), np.where(mask[..., None], dy, 0)
  y, dx = np.zeros_like(dy), np.zeros_like(x)
  dparams = jax.tree.map(np.zeros_like, params)
  keys = jax.random.split(key, len(x))
  losses, counts, errors = {}, {}, []
  groups = groups_of(*x.shape[:2], size, across)

  def expert(e, x):
    take = lambda tree: jax.tree.map(lambda w: w[e], tree['experts']['stacked'])
    y, pull = mlp_in_numpy(take(params), x)
    return y, lambda dy: pull(dy, take(dparams))

  def one_piece(x, writes, weights):
    share = np.float32(0)
    return route(params['router'], x, writes, None, None, weights, share)

  for group in groups:
    at = tuple(np.array(group).T)
    if hasattr(module.router, 'segment'):
      piece = module.router.segment
      of_example = x[at], mask[at], segments[at], dy[at]
      y[at], dx[at], gradients = piece_loops.run_example(
        one_piece, *of_example, piece, expert
      )
      dparams['router'] = functools.reduce(add, gradients, dparams['router'])
      continue
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
      errors.append(errors_of(module.router, routed, aux.steer, mask[at]))
  if 'shared' in params:
    for at in zip(*np.nonzero(mask), strict=True):
      output, pull = mlp_in_numpy(params['shared'], x[at])
      y[at] += output
      dx[at] += pull(dy[at], dparams['shared'])
  steer(module.router, dparams.get('router', {}), losses, errors)
  y, dx = (np.where(mask[..., None], v, 0) for v in (y, dx))
  per = {'used_experts': len(groups)}
  counts = {k: v / per.get(k, np.sum(mask)) for k, v in counts.items()}
  return y, {'losses': losses, 'counts': counts}, (dparams, dx)


def add(a, b):
  return jax.tree.map(lambda a, b: a + np.asarray(b), a, b)


def add_counts(totals, values):
  for name, value in values.items():
    totals[name] = totals.get(name, 0) + value


def errors_of(router, routed, steer, mask):
  """Returns the group's statistics, errors of a load in whole numbers."""
  wanted = np.asarray(routed.wanted())
  assert not np.any(wanted[~mask])
  counts = np.sum(wanted, axis=0)
  errors = {
    'bias': len(counts) * counts - np.sum(counts),  # load over the mean load
    'log_coefficient': getattr(router, 'k', 0) * np.sum(mask) - np.sum(counts),
  }
  return {name: errors.get(name, steer[name]) for name in steer}


def steer(router, dparams, losses, errors):
  """Puts sums or means of the groups in the place of gradients."""
  for name in errors[0] if errors else ():
    total = sum(np.float32(error[name]) for error in errors)
    groups = len(errors) if routing.rule(router, name).mean else 1
    assert np.all(dparams[name] == 0)  # nothing else moves it
    dparams[name] = total / np.float32(groups)
    losses[f'steer_{name}'] = 0.0
