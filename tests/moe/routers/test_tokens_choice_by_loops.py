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

from softmoe.moe.routers.tokens_choice import TokensChoice
from tests.moe.loss_loops import variation
from tests.moe.sparse import check_gradients, compute

WIDTH, DRAWS = 6, 20
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


# Forward, by loops.


def softmax(row):
  each = [math.exp(v - max(row)) for v in row]
  return np.array([v / sum(each) for v in each], np.float32)


def expert(x, up, down, e):
  return np.tanh(x @ up[e]) @ down[e]


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
