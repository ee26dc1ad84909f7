"""Collectives, read from compiled programs and from the forms of XLA's text."""

import functools

import jax
import pytest
from jax import numpy as jnp

from softmoe.plan import collectives, hlo

P = jax.P


@pytest.fixture
def find(mesh):
  """Returns the collectives of a shard_mapped function of (8, 16) float32."""
  mesh(2, 4)

  def run(function, out):
    x = jax.ShapeDtypeStruct(
      (8, 16),
      jnp.float32,
      sharding=jax.NamedSharding(jax.sharding.get_mesh(), P('data', 'expert')),
    )
    mapped = jax.shard_map(
      function, in_specs=P('data', 'expert'), out_specs=out, check_vma=False
    )
    text = jax.jit(mapped).lower(x).compile().as_text()
    return collectives.find(hlo.parse(text), 8)

  return run


LOCAL = 4 * 4 * 4  # bytes of (8 / 2, 16 / 4) float32


@pytest.mark.parametrize(
  ('kind', 'function', 'out', 'sent', 'group'),
  [
    (
      'all-to-all',
      lambda x: jax.lax.all_to_all(x, 'expert', 0, 1, tiled=True),
      P('data'),
      LOCAL * 3 // 4,
      (0, 1, 2, 3),
    ),
    (
      'all-reduce',
      lambda x: jax.lax.psum(x, 'data'),
      P(None, 'expert'),
      LOCAL,
      (0, 4),
    ),
    (
      'all-gather',
      lambda x: jax.lax.all_gather(x, 'expert', tiled=True),
      P('data'),
      LOCAL * 3,
      (0, 1, 2, 3),
    ),
    (
      'reduce-scatter',
      lambda x: jax.lax.psum_scatter(x, 'expert', tiled=True),
      P('data'),
      LOCAL * 3 // 4,
      (0, 1, 2, 3),
    ),
    (
      'collective-permute',
      lambda x: jax.lax.ppermute(x, 'data', [(0, 1), (1, 0)]),
      P('data', 'expert'),
      LOCAL,
      (0, 4),
    ),
  ],
)
def test_kind_bytes_and_group(find, kind, function, out, sent, group):
  (found,) = find(function, out)
  assert (found.kind, found.count) == (kind, 1)
  assert found.sent == sent
  assert found.groups[0] == group


def test_those_of_a_loop_count_as_often_as_it_runs(find):
  def function(x):
    body = lambda x, _: (jnp.sin(jax.lax.psum(x, 'data')), ())
    return jax.lax.scan(body, x, None, length=7)[0]

  table = collectives.summary(find(function, P('data', 'expert')))
  assert table == {'all-reduce': {'count': 7, 'bytes': 7 * LOCAL}}


@pytest.mark.parametrize(
  ('groups', 'first'),
  [
    ('{{0,2},{1,3}}', (0, 2)),
    ('{}', (0, 1, 2, 3)),
    ('[2,2]<=[4]', (0, 1)),
    ('[2,2]<=[2,2]T(1,0)', (0, 2)),
    ("mesh['a'=2,'b'=2] {'a'}", (0, 2)),
    ("mesh['a'=2,'b'=2] {'b'}", (0, 1)),
    ("mesh['a'=2,'b'=2] {'a','b'}", (0, 1, 2, 3)),
    ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", (0, 1)),
  ],
)
def test_forms_of_replica_groups(groups, first):
  attributes = f', channel_id=1, replica_groups={groups}, dimensions={{0}}'
  (group,) = collectives.find_groups(attributes, 4)
  assert tuple(sorted(group)) == first


@pytest.mark.parametrize(
  'groups', ['@x', "mesh['a'=2] ['a']", '[2,2]<=(4)', "mesh['a'=2], x {'a'}"]
)
def test_an_unknown_form_is_not_guessed(groups):
  with pytest.raises(ValueError, match='unknown form'):
    collectives.find_groups(f', replica_groups={groups}, dimensions={{0}}', 4)


def test_all_pairs_of_a_permute(find):
  pairs = [(i, (i + 1) % 4) for i in range(4)]
  (found,) = find(
    lambda x: jax.lax.ppermute(x, 'expert', pairs), P('data', 'expert')
  )
  assert sorted(found.groups) == sorted(
    (i + row, j + row) for i, j in pairs for row in (0, 4)
  )


def test_a_start_and_its_done_are_one():
  text = """HloModule m

ENTRY %main (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  %start = (f32[4]{0}, f32[8]{0}) all-gather-start(%p), \
replica_groups=[1,2]<=[2], dimensions={0}, metadata={op_name="jit(f)/x"}
  ROOT %done = f32[8]{0} all-gather-done(%start)
}
"""
  (found,) = collectives.find(hlo.parse(text), 2)
  assert found == collectives.Collective(
    'all-gather', 1, 16, ((0, 1),), 'jit(f)/x'
  )


def test_one_that_a_sparse_core_does_is_found():
  text = """HloModule m

%called (p.1: f32[8], t: token[]) -> f32[8] {
  %t = token[] parameter(1)
  %p.1 = f32[8]{0} parameter(0)
  ROOT %all = f32[8]{0} all-to-all(%p.1), replica_groups={{0,1}}
}, execution_thread="sparsecore"

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %ready = token[] custom-call(), custom_call_target="PrepareAsyncCallDone"
  %start = ((f32[8]{0}, token[]), f32[8]{0}) call-start(%p, %ready), \
async_execution_thread="sparsecore", to_apply=%called
  ROOT %done = f32[8]{0} call-done(%start)
}
"""
  table = collectives.summary(collectives.find(hlo.parse(text), 2))
  assert table == {'all-to-all': {'count': 1, 'bytes': 16}}


def test_a_group_of_one_is_no_collective(mesh):
  mesh(1, 8)
  function = functools.partial(jax.lax.psum, axis_name='data')
  mapped = jax.shard_map(function, in_specs=P(), out_specs=P())
  text = jax.jit(mapped).lower(jnp.ones(4)).compile().as_text()
  assert collectives.find(hlo.parse(text), 8) == []
