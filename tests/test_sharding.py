"""Mesh strings, moves between placements, and fully-sharded weights."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.errors import UserError

P = jax.P


@pytest.mark.parametrize(
  'spec, data, expert',
  [
    ('data:2,expert:4', 2, 4),
    ('expert:4,data:2', 2, 4),
    ('data:-1,expert:1', 8, 1),
    ('data:-1,expert:2', 4, 2),
    ('expert:-1', 1, 8),
    ('data:8', 8, 1),
    ('data:8,expert:-1', 8, 1),
  ],
)
def test_mesh_string(spec, data, expert):
  mesh = sharding.make_mesh(spec)
  assert dict(mesh.shape) == {'data': data, 'expert': expert}
  assert mesh.axis_names == ('data', 'expert')
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}


def test_mesh_of_some_devices():
  mesh = sharding.make_mesh('data:-1,expert:2', jax.devices()[4:])
  assert mesh.devices.shape == (2, 2)
  assert set(mesh.devices.flat) == set(jax.devices()[4:])


@pytest.mark.parametrize(
  'spec, expected',
  [
    ('data:3', 'sizes whose product is 8, the device count'),
    ('data:-1,expert:3', 'sizes whose product is 8, the device count'),
    ('data:-1,expert:-1', 'at most one size of -1'),
    ('data:16,expert:-1', 'sizes whose product is 8, the device count'),
    ('', "'data:N,expert:M'"),
    ('model:8', "'data:N,expert:M'"),
    ('data', "'data:N,expert:M'"),
    ('data:0', "'data:N,expert:M'"),
    ('data:-2', "'data:N,expert:M'"),
    ('data:2.5', "'data:N,expert:M'"),
    ('data:8,', "'data:N,expert:M'"),
    ('data:2,data:8', 'each axis once'),
  ],
)
def test_bad_mesh_string_is_named(spec, expected):
  with pytest.raises(UserError) as error:
    sharding.make_mesh(spec)
  assert str(error.value).startswith(f'config.mesh: got {spec!r}; {expected}')


def spec_of(x):
  """Returns the placement without its trailing Nones."""
  spec = list(x.sharding.spec)
  while spec and spec[-1] is None:
    spec.pop()
  return P(*spec)


def placed(shape, *spec):
  x = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
  return jax.device_put(x, P(*spec))


def test_nothing_moves_without_a_mesh():
  x = jnp.arange(6.0).reshape(2, 3)
  assert sharding.by_expert(x) is x
  assert sharding.num_devices() == 1
  assert sharding.gather(x) is x
  assert sharding.reshape(x, 3, 1).shape == (2, 3, 1)


def test_nothing_moves_with_automatic_axes():
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((2, 4), sharding.AXES, axis_types=auto)
  with jax.set_mesh(mesh):
    x = jnp.ones((8, 3))
    assert sharding.by_expert(x) is x
    assert sharding.reshape(x, 3, 1).shape == (8, 3, 1)


def test_by_expert_gives_up_the_batch(mesh):
  mesh(2, 4)
  x = placed((4, 8, 3), None, ('data', 'expert'))
  y = sharding.by_expert(x)
  assert spec_of(y) == P('expert', 'data')
  assert y.addressable_shards[0].data.shape == (1, 4, 3)
  np.testing.assert_array_equal(y, x)


def test_by_expert_of_whole_arrays(mesh):
  mesh(2, 4)
  assert spec_of(sharding.by_expert(jnp.ones((4, 3)))) == P('expert')


def test_num_devices_is_that_of_the_mesh(mesh):
  mesh(2, 2)
  assert sharding.num_devices() == 4


LEADING = [(), (8,), (8, 3), (8, 2, 3)]


@pytest.mark.parametrize('leading', LEADING)
def test_flatten_and_back_without_a_mesh(leading):
  size = 30 * np.prod(leading, dtype=int)
  x = jnp.arange(size, dtype=jnp.float32).reshape(*leading, 5, 6)
  flat = sharding.flatten(x, 2)
  assert flat.shape == (np.prod(leading, dtype=int), 5, 6)
  assert sharding.flatten(x[..., 0], 1).shape == flat.shape[:2]
  y = sharding.unflatten(flat[..., :4], x)
  np.testing.assert_array_equal(y, x[..., :4])


@pytest.mark.parametrize('leading', LEADING)
@pytest.mark.parametrize('axes', [None, 'data', ('data', 'expert')])
def test_flatten_and_back_keep_the_split(mesh, leading, axes):
  mesh(2, 4)
  x = placed((*leading, 5, 6), *((axes,) if leading else ()))
  flat = sharding.flatten(x, 2)
  assert flat.shape == (np.prod(leading, dtype=int), 5, 6)
  assert spec_of(flat) == (P(axes) if leading and axes else P())
  # What comes back from the experts is split by batch.
  everywhere = jax.device_put(flat, P(('data', 'expert') if leading else None))
  y = sharding.unflatten(everywhere[..., :4], x)
  assert spec_of(y) == spec_of(x)
  np.testing.assert_array_equal(y, x[..., :4])


def test_gather_gives_up_data_alone(mesh):
  mesh(2, 4)
  module = {
    'expert': placed((4, 6, 2), 'expert', 'data'),
    'dense': placed((3, 6), None, 'data'),
    'both': placed((8,), ('data', 'expert')),
  }
  whole = sharding.gather(module)
  assert {k: spec_of(v) for k, v in whole.items()} == {
    'expert': P('expert'),
    'dense': P(),
    'both': P('expert'),
  }
  jax.tree.map(np.testing.assert_array_equal, whole, module)


def test_fsdp_splits_the_longest_axis_that_divides(mesh):
  mesh(4, 2)
  weights = {
    'longest': jnp.ones((4, 8)),
    'that divides': jnp.ones((8, 9)),
    'none divides': jnp.ones((3, 9)),
    'vector': jnp.ones((8,)),
    'scalar': jnp.ones(()),
    'experts': placed((2, 4, 8), 'expert'),
  }
  assert {k: spec_of(v) for k, v in sharding.fsdp(weights).items()} == {
    'longest': P(None, 'data'),
    'that divides': P('data'),
    'none divides': P(),
    'vector': P(),
    'scalar': P(),
    'experts': P('expert', None, 'data'),
  }


def test_fsdp_leaves_the_axis_of_a_scan(mesh):
  mesh(4, 2)
  weights = {'matrix': jnp.ones((8, 4, 4)), 'vector': jnp.ones((8, 4))}
  split = sharding.fsdp(weights, skip=1)
  assert spec_of(split['matrix']) == P(None, 'data')
  assert spec_of(split['vector']) == P()


def test_gather_inverts_fsdp(mesh):
  mesh(4, 2)
  weights = {'dense': jnp.ones((4, 8)), 'expert': placed((2, 4, 8), 'expert')}
  whole = sharding.gather(sharding.fsdp(weights))
  assert {k: spec_of(v) for k, v in whole.items()} == {
    'dense': P(),
    'expert': P('expert'),
  }


def test_split_batch_keeps_rows_on_their_devices(mesh):
  mesh(2, 4)
  x = placed((24, 5), ('data', 'expert'))
  parts = sharding.split_batch(x, 3)
  assert spec_of(parts) == P(None, ('data', 'expert'))
  for i in range(3):
    np.testing.assert_array_equal(parts[i], np.asarray(x)[i::3])
  text = (
    jax.jit(lambda x: sharding.split_batch(x, 3)).lower(x).compile().as_text()
  )
  for move in ('all-to-all', 'all-gather', 'collective-permute', 'all-reduce'):
    assert move not in text


def test_reshape_keeps_the_first_axis_and_its_split(mesh):
  mesh(2, 4)
  x = placed((8, 4, 6), ('data', 'expert'))
  y = sharding.reshape(x, 2, 2, 6)
  assert y.shape == (8, 2, 2, 6)
  assert spec_of(y) == P(('data', 'expert'))
  np.testing.assert_array_equal(y.reshape(x.shape), x)


def test_batch_spec_is_every_axis(mesh):
  mesh(2, 4)
  assert sharding.batch_spec() == P(('data', 'expert'))


def soft_vit(scan, fsdp):
  config = config_lib.default()
  config.mesh, config.fsdp = 'data:2,expert:2', fsdp
  config.data.update(batch_size=4, eval_batch_size=4, num_classes=4)
  config.model.update(patch_size=(4, 4), width=16, mlp_dim=32, num_heads=2)
  config.model.update(qk_norm=True, scan=scan, depth=4 if scan else 2)
  config.model.moe.update(blocks=(2, 3) if scan else (1,), num_experts=4)
  return config_lib.parse(config)


def loss_and_gradients(config):
  """Returns loss, gradients and parameters on the config's mesh."""
  experiment = experiment_lib.build(config, jax.devices()[:4])
  rng = np.random.default_rng(0)
  draw = lambda shape: jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)
  params = jax.tree.map(
    lambda w: jax.device_put(draw(w.shape), w.sharding.spec),
    experiment.abstract_params,
  )
  images = jax.device_put(draw((4, 8, 8, 1)), sharding.batch_spec())

  def loss(params):
    logits, _ = nnx.merge(experiment.graphdef, params)(images)
    return jnp.sum(jnp.square(logits))

  value, gradients = jax.jit(jax.value_and_grad(loss))(params)
  return value, gradients, params


def test_fsdp_changes_places_and_no_number(mesh):
  mesh(2, 2)  # `build` replaces it; the fixture takes it away
  plain = loss_and_gradients(soft_vit(scan=True, fsdp=False))
  split = loss_and_gradients(soft_vit(scan=True, fsdp=True))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    split[:2],
    plain[:2],
  )
  same = lambda a, b: a.sharding.spec == b.sharding.spec
  assert jax.tree.all(jax.tree.map(same, split[1], split[2]))


@pytest.mark.parametrize('scan', [False, True])
def test_fsdp_splits_kernels_in_two_and_experts_in_four(mesh, scan):
  mesh(2, 2)
  config = soft_vit(scan, fsdp=True)
  params = experiment_lib.build(config, jax.devices()[:4]).abstract_params
  block = params['blocks'][len(params['blocks']) - 1]
  parts = lambda w: w.size // np.prod(w.sharding.shard_shape(w.shape))
  assert parts(block['attention']['query']['kernel']) == 2
  assert parts(block['mlp']['router']['phi']) == 2
  assert parts(block['mlp']['experts']['stacked']['up']['kernel']) == 4
  assert parts(block['mlp']['experts']['stacked']['up']['bias']) == 4
  assert parts(block['attention_norm']['scale']) == 1
  assert parts(params['head']['kernel']) == 2


def test_experts_are_split_without_fsdp(mesh):
  mesh(2, 2)
  config = soft_vit(scan=True, fsdp=False)
  params = experiment_lib.build(config, jax.devices()[:4]).abstract_params
  stacked = params['blocks'][1]['mlp'].pop('experts')
  assert {w.sharding.spec[1] for w in jax.tree.leaves(stacked)} == {'expert'}
  assert {spec_of(w) for w in jax.tree.leaves(params)} == {P()}
