"""The router against loops over tokens and experts, written from the papers.

The forward loop is plain numpy. The gradient is that of a second loop, in
jax.numpy, which takes the choices and the kept pairs as constants.
"""

import functools
import math

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe import gating, tokens_choice

TokensChoice = tokens_choice.TokensChoice
WIDTH, DRAWS = 6, 20
# Much code that runs for an instant: LLVM need not polish it.
QUICK_COMPILE = {'xla_backend_optimization_level': 0}
ALL = {'importance': 0.5, 'load': 0.4, 'switch': 1.0, 'gshard': 2.0, 'z': 0.1}
# Gates that order tokens or experts differ by more than rounding: draws with a
# smaller gap, of noisy logits in a token or first gates in a group, are redone.
GAP = 2e-5

# name: (tokens, experts, skew of the routing, options). Ten cases of twenty
# draws: 200, half of them with padding.
CASES = {
  'v-moe': (16, 4, 0, {'capacity_factor': 1.05, 'losses': ALL}),
  'batch priority': (
    21,
    4,
    2,
    {'capacity_factor': 0.5, 'batch_priority': True, 'losses': ALL},
  ),
  'switch': (24, 8, 3, {'k': 1, 'noise_std': 0.0, 'losses': {'switch': 0.01}}),
  'gshard': (
    15,
    4,
    2,
    {'normalize': True, 'noise_std': 0.0, 'losses': {'gshard': 1.0}},
  ),
  'deepseek': (
    11,
    6,
    1,
    {'k': 5, 'capacity_factor': None, 'losses': {'z': 1e-3, 'switch': 1.0}},
  ),
  'one token': (1, 4, 0, {'losses': ALL}),
  'one expert': (9, 1, 0, {'k': 1, 'capacity_factor': 0.6, 'losses': ALL}),
  'multiples of 4': (13, 3, 2, {'capacity_multiple': 4, 'losses': ()}),
  'null experts': (14, 3, 1, {'k': 3, 'num_null': 2, 'losses': ALL}),
  'one null expert': (
    10,
    2,
    3,
    {
      'k': 3,
      'num_null': 1,
      'capacity_factor': 0.7,
      'batch_priority': True,
      'losses': ALL,
    },
  ),
}


NONE_DROPPED = ('deepseek', 'one token')
IDLE = ('switch', 'one token')


def create(experts, options):
  return TokensChoice(WIDTH, experts, **options, rngs=nnx.Rngs(0))


@jax.jit
def route(router, x, mask=None, key=None):
  return router(x, mask=mask, key=key)


# Forward, by loops.


def softmax(row):
  each = [math.exp(v - max(row)) for v in row]
  return np.array([v / sum(each) for v in each], np.float32)


def expert(x, up, down, e):
  return np.tanh(x @ up[e]) @ down[e]


def variation(values):
  mean = sum(values) / len(values)
  if not mean:
    return 0.0
  return sum((v - mean) ** 2 for v in values) / len(values) / mean**2


def averaged(values, experts):
  """Returns per-expert values, with those of null experts made their mean."""
  null = values[experts:]
  return list(values[:experts]) + [sum(null) / len(null) for _ in null]


def loop_choices(noisy, mask, k):
  """Returns the experts of every real token by descending gate."""
  return [
    sorted(range(len(row)), key=lambda e: -row[e])[:k] if keep else []
    for row, keep in zip(noisy, mask, strict=True)
  ]


def loop_kept(choices, gates, experts, capacity, k, batch_priority):
  """Returns the pairs that find room in the experts' buffers."""
  tokens = [t for t, chosen in enumerate(choices) if chosen]
  if batch_priority:
    tokens.sort(key=lambda t: -max(gates[t]))
  room = [len(choices) if capacity is None else capacity] * experts
  kept = np.zeros((len(choices), experts), bool)
  for rank in range(k):
    for t in tokens:
      e = choices[t][rank]
      if e < experts and room[e]:
        room[e] -= 1
        kept[t, e] = True
  return kept


def loop_weights(choices, gates, experts, normalize):
  weights = np.zeros((len(choices), experts), np.float32)
  for t, chosen in enumerate(choices):
    real = [e for e in chosen if e < experts]
    total = sum(gates[t][e] for e in real) if normalize else 1
    for e in real:
      weights[t, e] = gates[t][e] / total
  return weights


def loop_losses(logits, noisy, gates, choices, experts, k, std, mask):
  real = [t for t in range(len(mask)) if mask[t]]
  columns, n = range(logits.shape[1]), len(real)
  spread = functools.partial(averaged, experts=experts)
  clean = {t: softmax(logits[t]) for t in real}
  chance = np.zeros(logits.shape)
  for t in real:
    for e in columns if std else ():
      needed = (sorted(noisy[t])[-k] - logits[t, e]) / std
      chance[t, e] = 1 - (1 + math.erf(needed / math.sqrt(2))) / 2
  nulls = len(columns) > experts
  counts = [0.0] * len(columns)
  for t in real:
    for e in choices[t] if nulls else choices[t][:1]:
      counts[e] += 1 / n / (k if nulls else 1)
  if nulls:
    counts = spread(counts)
  means = [sum(gates[t][e] for t in real) / n for e in columns]
  balance = sum(c * m for c, m in zip(counts, means, strict=True))
  sums = [sum(clean[t][e] for t in real) for e in columns]
  chances = [sum(chance[t, e] for t in real) for e in columns]
  return {
    'importance': variation(spread(sums) if nulls else sums),
    'load': variation(spread(chances) if nulls else chances),
    'switch': balance * len(columns),
    'gshard': balance / len(columns),
    'z': sum(math.log(sum(np.exp(logits[t]))) ** 2 for t in real) / n,
  }


# Gradient, by a second loop.


def loop_softmax(logits):
  each = [jnp.exp(v) for v in logits]
  total = sum(each)
  return [v / total for v in each]


def scalar(kernel, x, case, constant):
  """Returns the weighted sum of outputs and losses, of fixed choices."""
  up, down, noise, mask, wanted, kept, counts, last, cotangent = constant
  tokens, experts, _, options = CASES[case]
  options = {'k': 2, 'noise_std': 1.0, 'num_null': 0, **options}
  n = experts + options['num_null']

  def each(x, noise, wanted, kept, last):
    logits = [jnp.sum(x * kernel[:, e]) for e in range(n)]
    noisy = [logits[e] + noise[e] for e in range(n)]
    gates, clean = loop_softmax(noisy), loop_softmax(logits)
    total = 1.0
    if options.get('normalize') or options['num_null']:
      total = sum(wanted[e] * gates[e] for e in range(experts))
      total = jnp.where(total > 0, total, 1)
    y = 0.0
    for e in range(experts):
      out = jnp.tanh(x @ up[e]) @ down[e]
      y = y + kept[e] * gates[e] / total * out
    threshold = sum(jnp.where(last == e, noisy[e], 0) for e in range(n))
    std = options['noise_std'] / n or 1.0
    chance = [
      (1 + jax.lax.erf((logits[e] - threshold) / std / math.sqrt(2))) / 2
      for e in range(n)
    ]
    z = jnp.square(jnp.log(sum(jnp.exp(v) for v in logits)))
    return y, jnp.stack(gates), jnp.stack(clean), jnp.stack(chance), z

  y, gates, clean, chance, z = jax.vmap(each)(x, noise, wanted, kept, last)
  mean = lambda v: jnp.sum(jnp.where(mask[:, None], v, 0), 0) / jnp.sum(mask)

  def spread(values):
    values = [values[e] for e in range(n)]
    if n > experts:
      values = averaged(values, experts)
    middle = sum(values) / n
    return sum((v - middle) ** 2 for v in values) / n / middle**2

  balance = jnp.sum(counts * mean(gates))
  losses = {
    'importance': spread(mean(clean)),
    'load': spread(mean(chance)) if options['noise_std'] else 0.0,
    'switch': balance * n,
    'gshard': balance / n,
    'z': mean(z[:, None])[0],
  }
  used = dict(options['losses'])
  return jnp.sum(y * cotangent) + sum(
    used[name] * losses[name] for name in used
  )


# The router.


def apply(assignment, x, up, down):
  """Returns the outputs and the kept pairs, as `Assignment` defines them."""
  order = jnp.argsort(-assignment.priority, axis=0)
  place = jnp.argsort(order, axis=0)
  kept = assignment.priority > -jnp.inf
  if assignment.capacity is not None:
    kept &= place < assignment.capacity
  outputs = jnp.einsum(
    'meh,ehd->med', jnp.tanh(jnp.einsum('md,edh->meh', x, up)), down
  )
  y = jnp.sum(jnp.where(kept, assignment.gates, 0)[:, :, None] * outputs, 1)
  return y, kept


@functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
def compute(router, x, mask, key, up, down, cotangent):
  """Returns gradients of the router, and what it makes of the tokens."""

  def loss(router, x):
    assignment, aux = router(x, mask=mask, key=key)
    y, kept = apply(assignment, x, up, down)
    total = jnp.sum(y * cotangent) + sum(aux.losses.values())
    return total, (y, kept, assignment.wanted(), aux.losses)

  grads, forward = jax.grad(loss, argnums=(0, 1), has_aux=True)(router, x)
  return (grads[0].kernel[...], grads[1]), forward


def draw(rng, tokens, experts, columns, skew, std, padded):
  """Returns tokens, kernel, key, noise and mask without near ties."""
  while True:
    x = rng.normal(size=(tokens, WIDTH))
    kernel = rng.normal(size=(WIDTH, columns)) / 2
    # All tokens have a part in common, which draws them to a few experts.
    common = rng.normal(size=WIDTH)
    x = x + skew * common / np.linalg.norm(common)
    key = jax.random.key(rng.integers(2**31))
    noise = std * jax.random.normal(key, (tokens, columns))
    mask = np.ones(tokens, bool)
    if padded:
      mask = rng.random(tokens) < 0.7
      mask[rng.integers(tokens)] = True
    noisy = x @ kernel + np.asarray(noise, np.float64)
    gates = np.exp(noisy) / np.exp(noisy).sum(1, keepdims=True)
    within = np.diff(np.sort(noisy, axis=1), axis=1)
    across = np.diff(np.sort(gates.max(1)))
    if min(within.min(initial=1), across.min(initial=1)) > GAP or columns == 1:
      return jnp.float32(x), jnp.float32(kernel), key, noise, jnp.array(mask)


def loop(router, x, noise, mask, up, down):
  """Returns outputs, kept pairs, losses and choices, all by loops."""
  x, kernel, noise, mask, up, down = map(
    np.asarray, (x, router.kernel[...], noise, mask, up, down)
  )
  experts, k, n = router.num_experts, router.k, kernel.shape[1]
  logits = x @ kernel
  noisy = logits + noise
  gates = [softmax(row) for row in noisy]
  choices = loop_choices(noisy, mask, k)
  capacity = router.capacity_factor
  if capacity is not None:
    capacity = math.ceil(round(len(x) * k * capacity / n, 9))
    capacity += -capacity % router.capacity_multiple
  kept = loop_kept(choices, gates, experts, capacity, k, router.batch_priority)
  weights = loop_weights(choices, gates, experts, router.normalize)
  y = np.zeros_like(x)
  for t, e in np.argwhere(kept):
    y[t] += weights[t, e] * expert(x[t], up, down, e)
  std = router.noise_std / n
  losses = loop_losses(logits, noisy, gates, choices, experts, k, std, mask)
  return (y, kept, weights > 0, losses), choices


def loop_counts(choices, experts, n):
  """Returns the share of the choices that the balance losses count."""
  counts, tokens = np.zeros(n, np.float32), [c for c in choices if c]
  for chosen in tokens:
    for e in chosen if n > experts else chosen[:1]:
      counts[e] += 1 / len(tokens) / (len(chosen) if n > experts else 1)
  return np.float32(averaged(counts, experts) if n > experts else counts)


@pytest.mark.parametrize('case', CASES)
def test_router_is_the_loop(case):
  tokens, experts, skew, options = CASES[case]
  router = create(experts, options)
  n = experts + router.num_null
  reference = jax.jit(jax.grad(scalar, argnums=(0, 1)), static_argnames='case')
  rng = np.random.default_rng(len(case))
  dropped = idle = 0
  for i in range(DRAWS):
    x, kernel, key, noise, mask = draw(
      rng, tokens, experts, n, skew, router.noise_std / n, i % 2
    )
    up = jnp.float32(rng.normal(size=(experts, WIDTH, 5)))
    down = jnp.float32(rng.normal(size=(experts, 5, WIDTH)))
    cotangent = jnp.float32(rng.normal(size=x.shape))
    router.kernel[...] = kernel
    grads, forward = compute(router, x, mask, key, up, down, cotangent)
    expected, choices = loop(router, x, noise, mask, up, down)
    check_forward(forward, expected, dict(options['losses']))
    _, kept, wanted, _ = expected
    counts = loop_counts(choices, experts, n)
    last = np.array([(chosen or [0])[-1] for chosen in choices])
    constant = up, down, noise, mask, wanted, kept, counts, last, cotangent
    check_gradients(grads, reference(kernel, x, case=case, constant=constant))
    dropped += np.sum(wanted) - np.sum(kept)
    idle += np.sum(~kept.any(axis=0))
  # The draws are of the kind that the case is there for.
  assert (dropped > 0) == (case not in NONE_DROPPED)
  assert idle > 0 or case not in IDLE


def check_forward(actual, expected, coefficients):
  y, kept, wanted, losses = actual
  np.testing.assert_array_equal(wanted, expected[2])
  np.testing.assert_array_equal(kept, expected[1])
  np.testing.assert_allclose(y, expected[0], rtol=1e-5, atol=1e-5)
  assert losses.keys() == coefficients.keys()
  for name, coefficient in coefficients.items():
    right = coefficient * expected[3][name]
    assert losses[name] == pytest.approx(right, rel=1e-4, abs=1e-6), name


def check_gradients(actual, expected):
  for got, right in zip(actual, expected, strict=True):
    size = max(np.max(np.abs(right)), 1)
    np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5 * size)


# By hand: tokens are rows of logits, behind an identity kernel.


def by_hand(logits, **options):
  logits = jnp.asarray(logits, jnp.float32)
  router = TokensChoice(logits.shape[1], **options, rngs=nnx.Rngs(0))
  router.kernel[...] = jnp.eye(logits.shape[1])
  return route(router, logits)[0]


def test_first_choices_go_before_second_choices():
  # Gates .6 .3 .1: tokens 0, 1 and 3 start with expert 0, token 2 ends there.
  p = [[0.6, 0.3, 0.1], [0.7, 0.1, 0.2], [0.4, 0.5, 0.1], [0.8, 0.1, 0.1001]]
  routed = by_hand(np.log(p), num_experts=3, k=2, capacity_factor=1.0)
  no = -np.inf
  order = [[0, -4, no], [-1, no, -5], [-6, -2, no], [-3, no, -7]]
  np.testing.assert_array_equal(routed.priority, order)
  assert (routed.capacity, routed.choices) == (3, 2)
  gates = [[0.6, 0.3, 0], [0.7, 0, 0.2], [0.4, 0.5, 0], [0.8, 0, 0.1]]
  np.testing.assert_allclose(routed.gates, gates, rtol=1e-3)


def test_batch_priority_puts_the_surest_tokens_first():
  p = [[0.6, 0.4], [0.9, 0.1], [0.3, 0.7], [0.1, 0.9]]
  routed = by_hand(np.log(p), num_experts=2, k=2, batch_priority=True)
  # By first gate: 1 and 3 (alike, so 1 first), then 2, then 0.
  order = [[-3, -7], [0, -4], [-6, -2], [-5, -1]]
  np.testing.assert_array_equal(routed.priority, order)


@pytest.mark.parametrize('batch_priority', [False, True])
def test_ties_go_to_the_lower_expert_and_the_earlier_token(batch_priority):
  routed = by_hand(
    np.zeros((3, 4)), num_experts=4, k=2, batch_priority=batch_priority
  )
  expected = [[-t, -3 - t, -np.inf, -np.inf] for t in range(3)]
  np.testing.assert_array_equal(routed.priority, expected)


def test_padding_takes_no_place():
  router = create(4, {'k': 2})
  x = jax.random.normal(jax.random.key(0), (6, WIDTH))
  mask = jnp.array([True, False, True, True, False, True])
  routed, _ = route(router, x, mask)
  alone, _ = route(router, x[mask])
  np.testing.assert_array_equal(routed.wanted()[~mask], False)
  np.testing.assert_array_equal(routed.gates[~mask], 0)
  np.testing.assert_allclose(routed.gates[mask], alone.gates, rtol=1e-5)
  for e in range(4):  # The order of the real tokens, not their numbers.
    np.testing.assert_array_equal(
      np.argsort(-routed.priority[mask][:, e], stable=True),
      np.argsort(-alone.priority[:, e], stable=True),
    )


def test_real_gates_sum_to_one_beside_null_experts():
  p = [[0.5, 0.2, 0.2, 0.1], [0.1, 0.05, 0.45, 0.4], [0.3, 0.2, 0.1, 0.4]]
  router = TokensChoice(4, 2, k=2, num_null=2, rngs=nnx.Rngs(0))
  router.kernel[...] = jnp.eye(4)
  routed, _ = route(router, jnp.log(jnp.array(p)))
  # Token 0 picks 0 and 1; token 1 only null experts; token 2 a null one and 0.
  np.testing.assert_allclose(
    routed.gates, [[5 / 7, 2 / 7], [0, 0], [1, 0]], rtol=1e-5
  )
  np.testing.assert_array_equal(
    routed.wanted(), [[True, True], [False, False], [True, False]]
  )


def test_group_of_padding_alone_has_finite_gradients():
  router = create(4, {'k': 3, 'num_null': 2, 'losses': ALL})
  x = jax.random.normal(jax.random.key(0), (5, WIDTH))

  def loss(router, x):
    routed, aux = router(x, mask=jnp.zeros(5, bool), key=jax.random.key(1))
    return jnp.sum(routed.gates) + sum(aux.losses.values())

  value, grad = jax.jit(jax.value_and_grad(loss, argnums=1))(router, x)
  assert value == 0
  np.testing.assert_array_equal(grad, np.zeros_like(x))


# Noise, evaluation, types, transformations.


def test_noise_needs_a_key_and_differs_between_keys():
  router = create(8, {})
  x = jax.random.normal(jax.random.key(0), (32, WIDTH))
  gates = lambda key: np.asarray(route(router, x, key=key)[0].gates)
  np.testing.assert_array_equal(gates(None), gates(None))
  first, second = jax.random.key(1), jax.random.key(2)
  np.testing.assert_array_equal(gates(first), gates(first))
  assert np.any(gates(first) != gates(second))
  assert np.any(gates(first) != gates(None))
  router = create(8, {'noise_std': 0.0})
  np.testing.assert_array_equal(gates(first), gates(None))


def test_load_is_zero_without_noise():
  x = jnp.ones((4, WIDTH))
  key = jax.random.key(0)
  names = {'load': 1.0, 'importance': 1.0}
  router = create(4, {'losses': names})
  assert route(router, x, key=key)[1].losses['load'] > 0
  assert route(router, x)[1].losses['load'] == 0
  router = create(4, {'losses': names, 'noise_std': 0.0})
  assert route(router, x, key=key)[1].losses['load'] == 0


@pytest.mark.parametrize(
  'options, training, evaluation',
  [
    ({}, 5, 5),
    ({'eval_capacity_factor': 2.0}, 5, 10),
    ({'eval_capacity_factor': None}, 5, None),
    ({'capacity_factor': None}, None, None),
    ({'capacity_factor': None, 'eval_capacity_factor': 1.0}, None, 5),
  ],
)
def test_evaluation_may_have_a_capacity_of_its_own(
  options, training, evaluation
):
  router = create(4, options)

  def capacity(key):
    seen = []  # It is static: no need to compile.
    jax.eval_shape(lambda x: seen.append(router(x, key=key)[0].capacity), x)
    return seen[0]

  x = jax.ShapeDtypeStruct((10, WIDTH), jnp.float32)
  assert capacity(jax.random.key(0)) == training
  assert capacity(None) == evaluation


@pytest.mark.parametrize(
  'tokens, experts, factor, options, expected',
  [
    (1568, 32, 1.0, {'multiple': 4}, 52),
    (1568, 32, 1.0, {}, 49),
    (1568, 32, 1.05, {'choices': 2}, 103),
    (100, 10, 1.1, {}, 11),  # 100 * 1.1 / 10 is 11.000000000000002
    (196, 128, 1.0, {}, 2),
    (6, 4, 0.001, {}, 1),
    (6, 4, 100.0, {}, 6),
    (6, 4, None, {}, None),
  ],
)
def test_capacity(tokens, experts, factor, options, expected):
  assert gating.capacity(tokens, experts, factor, **options) == expected


def test_logits_are_float32_whatever_the_tokens():
  router = create(4, {})
  x = jax.random.normal(jax.random.key(0), (8, WIDTH), jnp.bfloat16)
  low, _ = route(router, x)
  high, _ = route(router, x.astype(jnp.float32))
  assert low.gates.dtype == low.priority.dtype == jnp.float32
  np.testing.assert_array_equal(low.gates, high.gates)


def test_groups_route_alone_under_vmap():
  router = create(4, {'batch_priority': True})
  x = jax.random.normal(jax.random.key(0), (3, 7, WIDTH))
  mask = jnp.arange(7)[None] < jnp.array([7, 4, 1])[:, None]
  keys = jax.random.split(jax.random.key(1), 3)
  together = jax.vmap(functools.partial(route, router))(x, mask, keys)
  for g in range(3):
    alone = route(router, x[g], mask[g], keys[g])
    for actual, expected in zip(
      jax.tree.leaves(together), jax.tree.leaves(alone), strict=True
    ):
      np.testing.assert_allclose(actual[g], expected, rtol=1e-5, atol=1e-6)


def test_priority_carries_no_gradient():
  router = create(4, {'batch_priority': True})

  def total(x):
    priority = router(x)[0].priority
    return jnp.sum(jnp.where(priority > -jnp.inf, priority, 0))

  grad = jax.jit(jax.grad(total))(jnp.ones((5, WIDTH)))
  np.testing.assert_array_equal(grad, np.zeros((5, WIDTH)))


@pytest.mark.parametrize(
  'options, message',
  [
    ({'k': 9}, 'k: got 9; 1 to 8, the number of experts'),
    ({'k': 0}, 'k: got 0; 1 to 8, the number of experts'),
    ({'k': 11, 'num_null': 2}, 'k: got 11; 1 to 10, the number of experts'),
    ({'num_null': -1}, 'num_null: got -1; at least 0'),
    ({'capacity_factor': 0.0}, 'capacity_factor: got 0.0; above 0'),
    ({'capacity_factor': -1.0}, 'capacity_factor: got -1.0; above 0'),
    ({'capacity_factor': math.nan}, 'capacity_factor: got nan; above 0'),
    ({'eval_capacity_factor': 0.0}, 'eval_capacity_factor: got 0.0; above 0'),
    ({'capacity_multiple': 0}, 'capacity_multiple: got 0; at least 1'),
    ({'noise_std': -0.5}, 'noise_std: got -0.5; at least 0'),
    ({'losses': {'loud': 1.0}}, "losses: got 'loud'; names out of"),
    ({'losses': {'z': -1.0}}, 'losses.z.: got -1.0; at least 0'),
  ],
)
def test_bad_argument_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    create(8, options)


def test_bad_size_is_named():
  with pytest.raises(ValueError, match='width: got 0; at least 1'):
    TokensChoice(0, 4, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match='num_experts: got 0; at least 1'):
    TokensChoice(4, 0, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=f"x: got 'width 5'; {WIDTH}"):
    create(4, {})(jnp.ones((3, 5)))


def test_more_choices_than_float32_can_order_are_refused():
  router = create(4, {'k': 2})
  x = jax.ShapeDtypeStruct((2**23, WIDTH), jnp.float32)
  gates = lambda x: router(x)[0].gates
  assert jax.eval_shape(gates, x).shape == (2**23, 4)
  x = jax.ShapeDtypeStruct((2**23 + 1, WIDTH), jnp.float32)
  with pytest.raises(ValueError, match="'8388609 tokens'; 8388608 at most"):
    jax.eval_shape(gates, x)
