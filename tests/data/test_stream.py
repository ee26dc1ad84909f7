"""Batches of sequences of varying length, padded by the loader."""

import itertools
import threading
import time

import numpy as np
import pytest

from softmoe import config as config_lib
from softmoe.data import stream
from softmoe.errors import UserError

_SIZE, _LENGTH = 50, 6


def _config(**fields):
  fields = {'batch_size': 16, 'eval_batch_size': 16, 'threads': 2, **fields}
  return config_lib.DataConfig(**fields)


def _sequence(index):
  """Returns an example that tells its index: 1 to 6 times index + 1."""
  tokens = np.zeros(_LENGTH, np.int16)
  tokens[: 1 + index % _LENGTH] = index + 1
  return {'tokens': tokens, 'weight': np.float32(index / 2)}


def _noisy(index, rng):
  return _sequence(index) | {'noise': rng.random(2)}


def _train(count, config=None, size=_SIZE, load=_noisy, **options):
  config = config or _config()
  options = {'seed': 0, **options}
  batches = stream.train_batches(config, size, load, **options)
  return list(itertools.islice(batches, count))


def _eval(config=None, size=_SIZE, load=_sequence, **options):
  return list(stream.eval_batches(config or _config(), size, load, **options))


def _indices(batches):
  return np.concatenate([batch['tokens'][:, 0] for batch in batches]) - 1


def _assert_equal(actual, expected):
  for a, b in zip(actual, expected, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      assert a[name].dtype == b[name].dtype
      np.testing.assert_array_equal(a[name], b[name])


def _part(process, count, size=16):
  """Rows of one of `count` processes: every count-th."""
  return np.arange(process, size, count)


def _joined(parts, rows):
  """Puts the rows of several processes where they belong, step by step."""
  order = np.argsort(np.concatenate(rows))
  return [
    {n: np.concatenate([part[n] for part in step])[order] for n in step[0]}
    for step in zip(*parts, strict=True)
  ]


def test_arrays_are_stacked_and_keep_their_types():
  (batch,) = _train(1)
  shapes = {name: (a.shape, a.dtype) for name, a in batch.items()}
  assert shapes == {
    'tokens': ((16, _LENGTH), np.int16),
    'weight': ((16,), np.float32),
    'noise': ((16, 2), np.float64),
  }


def test_arrays_of_an_example_stay_together():
  for batch in _train(4):
    expected = [_sequence(int(i)) for i in _indices([batch])]
    for name in ('tokens', 'weight'):
      values = [example[name] for example in expected]
      np.testing.assert_array_equal(batch[name], values)


def test_the_order_and_the_noise_of_a_seed_stay():
  # Other numbers would mean that a run goes on with other examples.
  (batch,) = _train(1, seed=3)
  assert _indices([batch])[:6].tolist() == [19, 3, 14, 35, 41, 5]
  noise = [0.574551463548502, 0.5017306239249563]
  assert batch['noise'][:2, 0].tolist() == noise


@pytest.mark.parametrize(
  'rows',
  [
    [np.arange(8), np.arange(8, 16)],
    [np.arange(8, 16), np.arange(8)],
    [_part(i, 4) for i in range(4)],
    [np.array([3]), np.delete(np.arange(16), 3)],
  ],
)
def test_global_batch_does_not_depend_on_who_reads_which_rows(rows):
  whole = _train(8)  # 128 rows: more than two epochs of 50
  parts = [_train(8, rows=each) for each in rows]
  assert parts[0][0]['weight'].shape == (len(rows[0]),)
  _assert_equal(_joined(parts, rows), whole)


@pytest.mark.parametrize('start', [1, 3, 6])
@pytest.mark.parametrize('rows', [None, _part(1, 2)])
def test_resuming_continues_the_same_stream(start, rows):
  resumed = _train(8 - start, start_step=start, rows=rows)
  _assert_equal(resumed, _train(8, rows=rows)[start:])


def test_starting_far_away_is_immediate():
  (batch,) = _train(1, start_step=10**9)
  assert batch['tokens'].shape == (16, _LENGTH)


@pytest.mark.parametrize('threads', [0, 1, 4])
def test_threads_change_nothing(threads):
  _assert_equal(_train(4, _config(threads=threads)), _train(4))


def test_seeds_differ_and_repeat():
  _assert_equal(_train(2, seed=1), _train(2, seed=1))
  first, second = _train(1, seed=1), _train(1, seed=2)
  assert (_indices(first) != _indices(second)).any()


def test_each_epoch_has_every_example_once_in_a_new_order():
  epochs = _indices(_train(15, _config(batch_size=10))).reshape(3, 50)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(50))
  assert len({epoch.tobytes() for epoch in epochs}) == 3


def test_an_example_gets_new_noise_in_each_epoch():
  (batch,) = _train(1, size=1)
  assert len({noise.tobytes() for noise in batch['noise']}) == 16


def test_batch_may_exceed_the_epoch_and_be_one():
  (batch,) = _train(1, size=3)
  assert batch['weight'].shape == (16,)
  (batch,) = _train(1, _config(batch_size=1))
  assert batch['weight'].shape == (1,)


@pytest.mark.parametrize('size', [16, 50, 64, 10])
@pytest.mark.parametrize('process_count', [1, 2])
def test_eval_gives_every_example_once_in_order(size, process_count):
  config = _config(eval_batch_size=size)
  rows = [_part(i, process_count, size) for i in range(process_count)]
  parts = [_eval(config, rows=each) for each in rows]
  steps = -(-_SIZE // size)
  assert [len(part) for part in parts] == [steps] * process_count
  joined = _joined(parts, rows)
  whole = {n: np.concatenate([b[n] for b in joined]) for n in joined[0]}
  expected = [_sequence(i) for i in range(_SIZE)]
  for name, dtype in (('tokens', np.int16), ('weight', np.float32)):
    assert whole[name].dtype == dtype
    values = np.stack([example[name] for example in expected])
    np.testing.assert_array_equal(whole[name][:_SIZE], values)
    assert not whole[name][_SIZE:].any()
  padding = steps * size - _SIZE
  np.testing.assert_array_equal(whole['mask'], [1] * _SIZE + [0] * padding)
  assert whole['mask'].dtype == np.float32


def test_eval_process_with_padding_alone():
  (batch,) = _eval(size=3, rows=np.arange(8, 16))
  assert batch['tokens'].shape == (8, _LENGTH)
  assert batch['tokens'].dtype == np.int16
  assert not any(array.any() for array in batch.values())


class _Recorder:
  """Loads in 10 ms and counts."""

  def __init__(self):
    self.lock = threading.Lock()
    self.loaded = self.active = self.most_active = 0

  def __call__(self, index, rng):
    with self.lock:
      self.loaded += 1
      self.active += 1
      self.most_active = max(self.active, self.most_active)
    time.sleep(0.01)
    with self.lock:
      self.active -= 1
    return _noisy(index, rng)


@pytest.mark.parametrize('threads', [0, 1, 3])
def test_threads_work_at_once_and_no_further_ahead(threads):
  load = _Recorder()
  config = _config(batch_size=2, threads=threads)
  iterator = stream.train_batches(config, _SIZE, load, seed=0)
  for _ in range(3):
    next(iterator)
  ahead = 2 * (3 + threads)
  deadline = time.monotonic() + 10
  while load.loaded < ahead and time.monotonic() < deadline:
    time.sleep(0.01)
  time.sleep(0.05)
  assert load.loaded == ahead
  assert load.most_active == max(threads, 1)


@pytest.mark.parametrize('threads', [0, 2])
def test_a_bad_example_is_raised_when_its_batch_is_due(threads):
  def load(index, rng=None):
    del rng
    if index == 20:
      raise UserError('example', index, 'a good one')
    return _sequence(index)

  config = _config(threads=threads)
  expected = 'example: got 20; a good one'
  iterator = stream.eval_batches(config, _SIZE, load)
  next(iterator)
  with pytest.raises(UserError, match=expected):
    next(iterator)
  with pytest.raises(UserError, match=expected):
    _train(4, config, load=load)
