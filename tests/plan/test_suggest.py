"""Suggestions: which changes are tried, in which order, and that they fit."""

import pytest

from softmoe import experiment as experiment_lib
from softmoe.plan import estimate, programs, suggest, targets


def flags(config, new):
  return suggest._changes(config, new)


def test_cheap_changes_come_first_and_all_can_be_built(tiny):
  config = tiny(mesh='data:4,expert:2', data__batch_size=64)
  tried = list(suggest._candidates(config, 8, True))
  fields = [set(flags(config, new)) for new in tried]
  assert fields[0] == {'model.remat'}
  assert fields[1] == {'model.remat', 'mesh'}
  assert [new.mesh for new in tried[1:4]] == [
    'data:2,fsdp:2,expert:2',
    'data:1,fsdp:4,expert:2',
    'data:1,fsdp:8,expert:1',
  ]
  assert [new.optimizer.accumulate for new in tried[3:]] == [
    1,
    2,
    4,
    8,
    4,
    2,
    1,
  ]
  assert [new.data.batch_size for new in tried[7:]] == [32, 16, 8]
  for new in tried:
    experiment_lib.build(new)


def test_with_a_state_that_is_too_large_it_is_split_at_once(tiny):
  config = tiny(mesh='data:8')
  first = next(suggest._candidates(config, 8, False))
  assert flags(config, first) == {
    'model.remat': True,
    'mesh': 'data:4,fsdp:2,expert:1',
  }


@pytest.fixture
def limited(monkeypatch):
  """Lets a CPU have so many bytes of memory; returns the configs compiled."""
  compiled, limit = [], {}

  def estimate_(config, target, *, which, cache):
    compiled.append(config)
    report = real(config, target, which=which, cache=cache)
    memory = report[programs.TRAIN]['memory']
    memory['limit'] = limit['bytes']
    memory['fits'] = memory['total'] <= limit['bytes']
    return report

  real = estimate.estimate
  monkeypatch.setattr(estimate, 'estimate', estimate_)
  return compiled, limit


def run(config, limited, share):
  """Returns what is suggested where `share` of what is needed is there."""
  target = targets.open_target('cpu:8')
  limited[1]['bytes'] = 2**60
  report = estimate.estimate(
    config, target, which=(programs.TRAIN,), cache=None
  )
  needed = report[programs.TRAIN]['memory']['total']
  limited[1]['bytes'] = int(share * needed)
  report[programs.TRAIN]['memory'] |= {
    'limit': limited[1]['bytes'],
    'fits': False,
  }
  limited[0].clear()
  return suggest.suggest(config, target, report)


def test_what_is_suggested_was_compiled_and_fits(tiny, limited):
  config = tiny(mesh='data:8', data__batch_size=512)
  found = run(config, limited, 0.7)
  assert found['train']['memory']['fits']
  assert found['tried'] == len(limited[0])
  assert found['changes'] == flags(config, limited[0][-1])
  assert found['changes']


def test_nothing_is_suggested_where_nothing_fits(tiny, limited):
  config = tiny('vit', mesh='data:8', data__batch_size=16)
  assert run(config, limited, 0.01) is None
