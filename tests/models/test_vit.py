"""How the ViT starts, its types, and what must not change its numbers."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.models import attention, mixtures, stack, vit
from softmoe.models import config as model_config

IMAGE, CHANNELS, CLASSES = (12, 8), 3, 5
FLOATS = (
  "one of ('float32', 'bfloat16'): the loss is not scaled, as float16 would"
  ' need'
)


def small(**changes):
  config = vit.ViTConfig(
    patch_size=(4, 2), width=16, depth=2, mlp_dim=24, num_heads=2
  )
  return dataclasses.replace(config, **changes)


def soft(*moe_blocks):
  return model_config.MoEConfig(
    blocks=moe_blocks, num_experts=3, slots_per_expert=2
  )


def make(config, **options):
  return vit.ViT(
    config,
    image_size=IMAGE,
    channels=CHANNELS,
    num_classes=CLASSES,
    rngs=nnx.Rngs(0),
    **options,
  )


def shapes(config):
  return nnx.eval_shape(lambda: make(config))


def randomized(config):
  """Returns the model's structure, and parameters of which none is special."""
  graphdef, state = nnx.split(shapes(config))
  rng = np.random.default_rng(0)
  draw = lambda w: jnp.asarray(0.4 * rng.normal(size=w.shape) + 0.1, w.dtype)
  return graphdef, jax.tree.map(draw, nnx.to_pure_dict(state))


def draw_images():
  return jax.random.normal(jax.random.key(1), (3, *IMAGE, CHANNELS))


# --- The start.


def test_head_starts_at_zero_with_the_bias_of_the_sigmoid_loss():
  bias = vit.sigmoid_head_bias(29_593)
  assert bias == pytest.approx(-10.295, abs=1e-3)
  start = jax.jit(lambda x: make(small(depth=1), head_bias=bias)(x)[0])
  logits = start(draw_images())
  np.testing.assert_array_equal(logits, np.full((3, CLASSES), np.float32(bias)))
  # Every class starts with the probability of a uniform guess.
  assert 1 / (1 + np.exp(-bias)) == pytest.approx(1 / 29_593, rel=1e-4)


def test_start_of_every_weight():
  config = small(width=64, depth=1, mlp_dim=256, qk_norm=True, pool='token')
  p = jax.jit(lambda: nnx.to_pure_dict(nnx.state(make(config), nnx.Param)))()
  std = lambda w: float(np.std(w))
  xavier = lambda w: np.sqrt(2 / sum(w.shape))
  block = p['blocks'][0]
  assert std(p['patches']['position']) == pytest.approx(0.02, rel=0.1)
  lecun = 1 / np.sqrt(np.prod(p['patches']['kernel'].shape[:3]))
  assert std(p['patches']['kernel']) == pytest.approx(lecun, rel=0.1)
  assert not np.any(p['patches']['class_token'])
  for kernel in (
    block['attention']['query']['kernel'],
    block['attention']['out']['kernel'],
    block['mlp']['up']['kernel'],
    block['mlp']['down']['kernel'],
  ):
    assert std(kernel) == pytest.approx(xavier(kernel), rel=0.05)
    assert np.max(np.abs(kernel)) <= np.sqrt(3) * xavier(kernel)
  assert std(block['mlp']['up']['bias']) == pytest.approx(1e-6, rel=0.2)
  assert np.all(block['attention_norm']['scale'] == 1)
  assert set(block['attention']['query_norm']) == {'scale'}


def test_drop_path_grows_linearly_from_zero():
  rates = stack.drop_path_rates(small(depth=4, drop_path=0.6))
  np.testing.assert_allclose(rates, [0, 0.2, 0.4, 0.6], atol=1e-6)


# --- Types.


def dtypes(tree):
  return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def test_bfloat16_computation_has_float32_parameters_and_logits():
  config = small(moe=soft(1), qk_norm=True, pool='map', representation_size=7)
  graphdef, params = randomized(config)
  half = shapes(dataclasses.replace(config, dtype='bfloat16'))
  assert dtypes(nnx.state(half)) == {'float32'}
  apply = jax.jit(lambda g, p, x: nnx.merge(g, p)(x)[0], static_argnums=0)
  exact = apply(graphdef, params, draw_images())
  logits = apply(nnx.graphdef(half), params, draw_images())
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, exact, atol=0.1)
  assert not np.allclose(logits, exact, atol=1e-4)


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize(
  'pool',
  [
    pytest.param(pool, marks=[pytest.mark.slow] * (pool != 'gap'))
    for pool in vit.POOLS
  ],
)
def test_types_of_computation_and_of_parameters_are_apart(pool, scan):
  config = small(
    depth=3, moe=soft(1, 2), pool=pool, representation_size=7, scan=scan
  )
  for compute in ('float32', 'bfloat16'):
    for params in ('float32', 'bfloat16'):
      model = shapes(
        dataclasses.replace(config, dtype=compute, param_dtype=params)
      )
      assert dtypes(nnx.state(model)) == {params}
      x = jax.eval_shape(lambda m, x: m.represent(x)[0], model, draw_images())
      assert x.dtype == compute
      logits = jax.eval_shape(lambda m, x: m(x)[0], model, draw_images())
      assert logits.dtype == jnp.float32


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('pool', vit.POOLS)
def test_every_part_keeps_the_split_of_the_batch(mesh, pool, scan):
  mesh(2, 4)
  config = small(
    depth=3,
    moe=dataclasses.replace(soft(1, 2), num_experts=4),
    pool=pool,
    qk_norm=True,
    representation_size=8,
    dropout=0.1,
    drop_path=0.1,
    remat=True,
    scan=scan,
  )
  split = jax.P(('data', 'expert'))
  images = jax.device_put(jnp.zeros((8, *IMAGE, CHANNELS)), split)
  # Explicit axes: a wrong place is an error of the trace alone.
  logits, gradients = jax.eval_shape(
    lambda m, x: (
      m(x)[0],
      jax.grad(lambda m: m(x, jax.random.key(0))[0].sum())(m),
    ),
    shapes(config),
    images,
  )
  assert logits.sharding.spec[0] == split[0]
  kernel = gradients.blocks[-1].mlp.experts.stacked.up.kernel
  assert 'expert' in kernel.sharding.spec


# --- What the blocks report.


def test_metrics_are_averages_over_the_moe_blocks():
  config = small(depth=3, moe=soft(0, 2))
  graphdef, params = randomized(config)
  model, images = nnx.merge(graphdef, params), draw_images()
  _, aux = model(images)
  x, each = model.patches(images), []
  for block in model.blocks:
    x, block_aux, _ = block(x)
    each += [block_aux['metrics']] if block_aux else []
  assert len(each) == 2
  for name in ('dispatch_max', 'combine_max'):
    values = [float(metrics[name]) for metrics in each]
    assert values[0] != values[1]
    assert aux['metrics'][name] == pytest.approx(np.mean(values), rel=1e-5)
  assert aux['losses'] == {}


def test_losses_are_summed_and_metrics_averaged_over_runs():
  # A run of two blocks and one of a single block.
  auxes = [
    {'losses': {'a': jnp.array([1.0, 2.0])}, 'metrics': {'m': jnp.arange(2.0)}},
    {'losses': {'a': jnp.array([4.0])}, 'metrics': {'m': jnp.array([8.0])}},
  ]
  merged = stack.merge_aux(auxes)
  assert merged['losses'] == {'a': 7.0} and merged['metrics'] == {'m': 3.0}


def test_plain_vit_reports_nothing():
  assert make(small())(draw_images())[1] == stack.merge_aux([])


def test_runs_of_equal_blocks():
  config = small(depth=5, moe=soft(2, 3))
  assert stack.runs(config) == [(i in (2, 3), 1) for i in range(5)]
  scanned = dataclasses.replace(config, scan=True)
  assert stack.runs(scanned) == [(False, 2), (True, 2), (False, 1)]


@pytest.mark.parametrize('depth, half', [(12, range(6, 12)), (3, (1, 2))])
def test_last_half(depth, half):
  assert vit.last_half(depth) == tuple(half)


# --- Bad input.


def test_variant():
  assert vit.variant('S/16') == {
    'width': 384,
    'depth': 12,
    'mlp_dim': 1536,
    'num_heads': 6,
    'patch_size': (16, 16),
  }


@pytest.mark.parametrize(
  'name', ['S', 'S/', 'S/0', 'X/16', 's/16', 'S/16/2', '']
)
def test_bad_variant_is_named(name):
  with pytest.raises(UserError, match='variant: got .*SIZE/PATCH, SIZE one of'):
    vit.variant(name)


@pytest.mark.parametrize(
  'field, value, expected',
  [
    ('patch_size', (13, 2), 'at most (12, 8)'),
    ('num_heads', 3, 'a divisor of the width, 16'),
    ('pool', 'cls', "one of ('gap', 'token', 'map')"),
    ('dtype', 'float16', FLOATS),
    ('param_dtype', 'float16', FLOATS),
    ('attention', 'flash', f'one of {attention.IMPLEMENTATIONS}'),
    ('attention', 'cudnn', "'plain' or 'xla' without a GPU"),
    ('positions', 'learned', "one of ('none', 'rotary')"),
    (
      'moe.router',
      'hard',
      f"one of {sorted(mixtures.ROUTERS)} or 'my_module:MyRouter'",
    ),
    ('moe.k', 2, "1: the router 'soft' does not read it"),
    ('moe.blocks', (0, 2), 'each in 0..1'),
    ('moe.blocks', (1, 1), 'each block once'),
    ('moe.num_experts', 0, 'at least 1'),
    ('moe.slots_per_expert', 0, 'at least 1'),
    ('moe.expert_init', 'same', "one of ('independent', 'identical')"),
  ],
)
def test_what_does_not_fit_is_named(field, value, expected):
  group, _, name = field.rpartition('.')
  moe = model_config.MoEConfig(blocks=(1,), num_experts=3)
  if group:
    moe = dataclasses.replace(moe, **{name: value})
  config = small(moe=moe) if group else small(**{name: value})
  with pytest.raises(UserError) as error:
    make(config)
  assert str(error.value) == f'config.model.{field}: got {value!r}; {expected}'
