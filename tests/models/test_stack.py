"""Stacks of blocks: parameters in both forms, what is passed on, caches."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import sharding
from softmoe.models import config as model_config
from softmoe.models import stack, vit

MOE = model_config.MoEConfig(
  router='hash',
  router_options=(('vocab_size', 20),),
  blocks=(1, 2),
  num_experts=4,
)
CONFIG = model_config.TransformerConfig(
  width=8, depth=4, mlp_dim=8, num_heads=2, positions='rotary', moe=MOE
)
SCANNED = dataclasses.replace(CONFIG, scan=True)
EITHER = [pytest.param(CONFIG, marks=pytest.mark.slow), SCANNED]


class Model(nnx.Module):
  """A stack, and a parameter outside of it."""

  def __init__(self, config):
    self.blocks = nnx.List(stack.make_blocks(config, nnx.Rngs(0)))
    self.head = nnx.Param(jnp.zeros((3,)))


def make(config):
  """Returns the entries, with parameters that are equal scanned or not."""
  plain = dataclasses.replace(config, scan=False)
  abstract = jax.eval_shape(lambda: Model(plain))
  rng = np.random.default_rng(0)
  draw = lambda w: jnp.asarray(0.5 * rng.normal(size=w.shape), w.dtype)
  params = nnx.to_pure_dict(nnx.state(abstract, nnx.Param))
  params = jax.tree.map(draw, params)
  params['blocks'] = stack.stack(params['blocks'], config)
  graphdef = nnx.graphdef(jax.eval_shape(lambda: Model(config)))
  return nnx.merge(graphdef, params).blocks


def draw_tokens(b=4, n=5):
  return jax.random.normal(jax.random.key(1), (b, n, 8))


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


# --- As parameters.


def trees():
  """Returns a tree for CONFIG: runs of one, two and one blocks."""
  draw = lambda i, *shape: np.arange(np.prod(shape)).reshape(shape) + 100.0 * i
  plain = lambda i: {'up': draw(i, 2, 4), 'bias': draw(i, 4)}
  experts = lambda i: {'experts': draw(i, 4, 2, 4)}
  return {i: experts(i) if i in MOE.blocks else plain(i) for i in range(4)}


@pytest.mark.parametrize('kind', [np.asarray, jnp.asarray])
def test_each_form_is_the_inverse_of_the_other(kind):
  one_by_one = jax.tree.map(kind, trees())
  scanned = stack.stack(one_by_one, SCANNED)
  assert {i: t.keys() for i, t in scanned.items()} == {
    0: {'up', 'bias'},
    1: {'experts'},
    2: {'up', 'bias'},
  }
  assert scanned[1]['experts'].shape == (2, 4, 2, 4)
  np.testing.assert_array_equal(
    scanned[1]['experts'][1], one_by_one[2]['experts']
  )
  back = stack.unstack(scanned, SCANNED)
  equal(back, one_by_one)
  kinds = {type(w) for w in jax.tree.leaves((scanned, back))}
  assert kinds == {type(kind(0.0)) if kind is jnp.asarray else np.ndarray}
  assert stack.stack(one_by_one, CONFIG) is one_by_one
  assert stack.unstack(one_by_one, CONFIG) is one_by_one


def test_both_forms_on_a_mesh_and_without_numbers(mesh):
  mesh = mesh(2, 2, 2)
  spec = lambda w: jax.P('expert', 'fsdp') if w.ndim == 3 else jax.P()
  place = lambda w: jax.device_put(w, jax.NamedSharding(mesh, spec(w)))
  one_by_one = jax.tree.map(place, trees())
  scanned = stack.stack(one_by_one, SCANNED)
  assert scanned[1]['experts'].sharding.spec[:3] == (None, 'expert', 'fsdp')
  back = stack.unstack(scanned, SCANNED)
  equal(back, one_by_one)
  jax.tree.map(check_place, back, one_by_one)
  struct = lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding)
  shapes = stack.stack(jax.tree.map(struct, one_by_one), SCANNED)
  jax.tree.map(check_place, shapes, scanned)
  jax.tree.map(check_place, stack.unstack(shapes, SCANNED), one_by_one)


def check_place(actual, expected):
  assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
  assert actual.sharding.is_equivalent_to(expected.sharding, expected.ndim)


def test_the_model_says_what_is_stacked():
  abstract = jax.eval_shape(lambda: Model(SCANNED))
  told = stack.stacked(abstract)
  params = nnx.to_pure_dict(nnx.state(abstract, nnx.Param))
  assert jax.tree.structure(told) == jax.tree.structure(params)
  assert told['head'] is False
  assert all(jax.tree.leaves(told['blocks']))
  again = nnx.merge(nnx.graphdef(abstract), params)
  assert stack.stacked(again) == told
  assert not any(
    jax.tree.leaves(stack.stacked(jax.eval_shape(lambda: Model(CONFIG))))
  )


# --- What is passed on.


@pytest.mark.parametrize('config', EITHER, ids=['plain', 'scan'])
def test_every_argument_reaches_the_blocks(config):
  entries, x = make(config), draw_tokens()
  shared = dict(
    mask=jnp.arange(5)[None] < jnp.asarray([5, 3, 5, 5])[:, None],
    attention_mask=jnp.arange(5)[None] < jnp.asarray([4, 5, 5, 5])[:, None],
    token_ids=jnp.arange(20).reshape(4, 5),
    segments=jnp.broadcast_to(jnp.asarray([0, 0, 0, 1, 1]), (4, 5)),
    positions=jnp.broadcast_to(jnp.asarray([0, 1, 2, 0, 1]), (4, 5)),
  )
  apply = jax.jit(
    lambda x, shared: stack.apply_blocks(
      entries, config, x, causal=True, **shared
    )
  )
  y, aux, caches = apply(x, shared)
  assert caches is None and aux['metrics']['wanted'] == 1
  block_by_block, expected = make(CONFIG), x
  for block in block_by_block:
    run = jax.jit(lambda block, x: block(x, causal=True, **shared)[0])
    expected = run(block, expected)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  for name, other in (
    ('token_ids', shared['token_ids'][::-1]),
    ('mask', ~shared['mask']),
    ('attention_mask', shared['attention_mask'].at[:, 0].set(False)),
    ('segments', shared['segments'].at[:, 1].set(5)),
    ('positions', shared['positions'].at[:, 1].set(5)),
  ):
    assert np.any(apply(x, shared | {name: other})[0] != y), name


@pytest.mark.parametrize('config', EITHER, ids=['plain', 'scan'])
def test_caches_go_on_token_by_token(config):
  entries, x = make(config), draw_tokens()
  ids = jnp.arange(20).reshape(4, 5)
  whole = lambda x: stack.apply_blocks(
    entries, config, x, causal=True, token_ids=ids
  )[0]
  expected = jax.jit(whole)(x)
  step = jax.jit(
    lambda x, ids, caches: stack.apply_blocks(
      entries, config, x, caches=caches, causal=True, token_ids=ids
    )
  )
  caches, outputs = stack.init_caches(config, 4, 7), []
  for i in range(5):
    y, _, caches = step(x[:, i : i + 1], ids[:, i : i + 1], caches)
    outputs.append(y)
  assert len(caches) == len(entries)
  assert all(np.all(cache.attention.length == 5) for cache in caches)
  np.testing.assert_allclose(
    jnp.concatenate(outputs, axis=1), expected, rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize('config', [CONFIG, SCANNED], ids=['plain', 'scan'])
def test_hypotheses_have_the_caches_of_their_parents(mesh, config):
  mesh(2)
  split = lambda x: jax.reshard(x, sharding.batch_spec())
  number = lambda v: jnp.arange(v.size, dtype=v.dtype).reshape(v.shape)
  caches = jax.tree.map(number, stack.init_caches(config, 6, 5))
  caches = [cache._replace(memory=cache.attention) for cache in caches]
  caches = stack.place_caches(caches, split(jnp.zeros(6)), config)
  parents = split(jnp.asarray([[1, 0, 1], [2, 2, 0]]))
  found = stack.take_hypotheses(caches, parents, config)
  for before, after in zip(caches, found, strict=True):
    equal(after.memory, before.memory)
    keys = np.take(before.attention.keys, [1, 0, 1, 5, 5, 3], int(config.scan))
    equal(after.attention.keys, keys)
    equal(after.attention.length, before.attention.length)


CAUSAL = {
  'threshold': {},
  'tokens_choice': dict(k=2),
  'bias_balanced': dict(k=2),
  'quantile_balanced': dict(k=2),
  'expert_threshold': dict(k=2),
  'relu': dict(k=2),
  'hash': dict(router_options=(('vocab_size', 20),)),
  'mixture_of_tokens': dict(group_size=4),
  'segment_soft': dict(segment=2, slots_per_expert=2, shared_dim=8),
}
QUICKLY = ('threshold', 'mixture_of_tokens', 'segment_soft')


@pytest.mark.parametrize(
  ('router', 'scan'),
  [
    *(
      pytest.param(r, False, marks=() if r in QUICKLY else pytest.mark.slow)
      for r in CAUSAL
    ),
    pytest.param('segment_soft', True, marks=pytest.mark.slow),
  ],
)
def test_caches_of_every_causal_router_after_a_prompt(router, scan):
  moe = model_config.MoEConfig(
    router=router,
    blocks=(0, 1) if scan else (1,),
    num_experts=4,
    **CAUSAL[router],
  )
  config = dataclasses.replace(CONFIG, depth=2, scan=scan, moe=moe)
  entries, x = make(config), draw_tokens()
  # Only a router that looks at them takes ids.
  named = lambda ids: {'token_ids': ids} if router == 'hash' else {}
  run = jax.jit(
    lambda x, ids, caches: stack.apply_blocks(
      entries, config, x, caches=caches, causal=True, **named(ids)
    )
  )
  ids = jnp.arange(20).reshape(4, 5)
  expected, _, _ = run(x, ids, None)
  caches, outputs = stack.init_caches(config, 4, 7), []
  for tokens in (np.s_[:, :3], np.s_[:, 3:4], np.s_[:, 4:]):
    y, _, caches = run(x[tokens], ids[tokens], caches)
    outputs.append(y)
  np.testing.assert_allclose(
    jnp.concatenate(outputs, axis=1), expected, rtol=1e-5, atol=1e-5
  )


def test_a_changed_threshold_reaches_the_router_and_compiles_once():
  moe = model_config.MoEConfig(router='threshold', blocks=(0, 1), num_experts=4)
  config = vit.ViTConfig(
    patch_size=(4, 4), width=8, depth=2, mlp_dim=8, num_heads=2, moe=moe
  )
  build = lambda: vit.ViT(
    dataclasses.replace(config, scan=True),
    image_size=(8, 8),
    channels=1,
    num_classes=3,
    rngs=nnx.Rngs(0),
  )
  model = jax.jit(build)()
  images, traces = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), []

  @jax.jit
  def wanted(threshold):
    traces.append(1)
    aux = model(images, router_options={'threshold': threshold})[1]
    return aux['metrics']['wanted']

  counts = [float(wanted(t)) for t in (1e-6, 0.6, 0.9)]
  assert counts[0] == 1 and counts[0] < counts[1] < counts[2] <= 4
  assert len(traces) == 1


# --- What the blocks report.


def test_weights_are_averaged_and_names_may_be_missing():
  auxes = [
    {
      'losses': {'a': jnp.array([1.0, 2.0])},
      'metrics': {'m': jnp.array([1.0, 3.0])},
      'weights': {'a': jnp.array([2.0, 4.0])},
    },
    {
      'losses': {'a': jnp.array([4.0]), 'b': jnp.array([5.0])},
      'metrics': {'m': jnp.array([8.0])},
      'weights': {'a': jnp.array([6.0]), 'm': jnp.array([7.0])},
    },
  ]
  assert stack.merge_aux(auxes) == {
    'losses': {'a': 7.0, 'b': 5.0},
    'metrics': {'m': 4.0},
    'weights': {'a': 4.0, 'm': 7.0},
  }
  assert stack.merge_aux([]) == {'losses': {}, 'metrics': {}, 'weights': {}}


def test_rotary_needs_heads_of_even_width():
  config = dataclasses.replace(CONFIG, width=6)
  with pytest.raises(ValueError, match="positions: got 'rotary'; 'none' or"):
    stack.check(config)
