"""Suggestions: which changes are tried, in which order, and that they fit."""

import pytest

from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.plan import estimate, programs, suggest, targets
from tests.tasks import tiny_pairs


@pytest.mark.slow
def test_cheap_changes_come_first_and_all_can_be_built(tiny):
  config = tiny(mesh='data:4,expert:2', data__batch_size=64)
  tried = list(suggest._candidates(config, report(config, 0), True))
  fields = [set(suggest._changes(config, new)) for new in tried]
  assert fields[0] == {'model.remat'}
  assert fields[1] == {'model.remat', 'mesh'}
  assert [new.mesh for new in tried[1:4]] == [
    'data:2,fsdp:2,expert:2',
    'data:1,fsdp:4,expert:2',
    'data:1,fsdp:8,expert:1',
  ]
  parts = [new.optimizer.accumulate for new in tried[3:]]
  assert parts == [1, 2, 4, 8, 1]
  assert [new.data.batch_size for new in tried[6:]] == [64, 8]
  for new in tried:
    experiment_lib.build(new)


def test_a_loss_that_is_no_sum_has_its_batch_halved():
  config = tiny_pairs.config(mesh='data:1,fsdp:8', data={'batch_size': 64})
  tried = [*suggest._candidates(config, report(config, 0), False)]
  smaller = [suggest._changes(config, new) for new in tried]
  assert smaller == [
    {'model.remat': True, 'data.batch_size': size} for size in (32, 16, 8)
  ]
  for new in tried:
    experiment_lib.build(new)


def test_a_state_that_is_too_large_is_split_at_once(tiny):
  config = tiny(mesh='data:8')
  first = next(suggest._candidates(config, report(config, 0), False))
  assert suggest._changes(config, first) == {
    'model.remat': True,
    'mesh': 'data:4,fsdp:2,expert:1',
  }


STATE, IMAGE = 800, 100  # bytes, of all devices and of one image


def report(config, limit):
  """Returns what a compiler might say: remat saves half of an image."""
  sizes = sharding.axis_sizes(config.mesh, 8)
  state = STATE // (sizes['fsdp'] * sizes['expert'])
  images = config.data.batch_size // 8 // config.optimizer.accumulate
  total = state + images * IMAGE // (2 if config.model.remat else 1)
  memory = {'total': total, 'limit': limit, 'fits': total <= limit}
  return {
    'mesh': sizes,
    'devices': 8,
    'group_size': 1,
    'parameter_bytes': state // 3,
    programs.TRAIN: {
      'optimizer_bytes': state * 2 // 3,
      'whole_state_bytes': STATE,
      'memory': memory,
    },
  }


@pytest.fixture
def compiled(monkeypatch):
  """Stands for the compiler, with 1,000 bytes; returns what was compiled."""
  configs = []

  def estimate_(config, target, *, which, cache):
    assert which == (programs.TRAIN,)
    configs.append(config)
    return report(config, 1000)

  monkeypatch.setattr(estimate, 'estimate', estimate_)
  return configs


@pytest.mark.parametrize(
  ('batch', 'changes'),
  [
    (24, {'model.remat': True}),  # 800 + 3 x 50
    (64, {'model.remat': True, 'mesh': 'data:4,fsdp:2,expert:1'}),  # 400 + 400
    (
      256,
      {
        'model.remat': True,
        'mesh': 'data:1,fsdp:8,expert:1',
        'optimizer.accumulate': 2,  # 100 + 16 x 50
      },
    ),
  ],
)
def test_the_first_that_fits_is_suggested(tiny, compiled, batch, changes):
  config = tiny(mesh='data:8', data__batch_size=batch)
  target = targets.open_target('cpu:8')
  found = suggest.suggest(config, target, report(config, 1000))
  assert found['changes'] == changes
  assert found['tried'] == len(compiled)
  assert found['train']['memory']['fits']


@pytest.mark.parametrize(('limit', 'tries'), [(90, False), (110, True)])
def test_nothing_is_suggested_where_nothing_fits(
  tiny, monkeypatch, limit, tries
):
  """Nor compiled where 8 devices cannot hold the state: 100 bytes each."""
  compiled = []

  def estimate_(config, *_, **__):
    compiled.append(config)
    return report(config, limit)

  monkeypatch.setattr(estimate, 'estimate', estimate_)
  config = tiny(mesh='data:8', data__batch_size=16)
  target = targets.open_target('cpu:8')
  assert suggest.suggest(config, target, report(config, limit)) is None
  assert bool(compiled) is tries
