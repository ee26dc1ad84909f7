"""Batches of pairs: which, how long, and what is in them."""

import collections
import dataclasses

import numpy as np
import pytest

from softmoe.data.text import buckets, pairs
from softmoe.errors import UserError

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, 15, 57)
ORDER = buckets.Order(LENGTHS, (4, 8, 12), 5, seed=3)
FIT = {i for i, n in enumerate(LENGTHS) if n <= 12}


def epoch(order, number):
  size = len(order._epoch(0))
  return [order.train(number * size + i) for i in range(size)]


def test_an_epoch_has_each_example_once_but_for_a_rest():
  for number in (0, 1):
    batches = epoch(ORDER, number)
    assert all(len(batch.indices) == 5 for batch in batches)
    found = [i for batch in batches for i in batch.indices]
    assert len(set(found)) == len(found) > len(FIT) - 5
    assert set(found) <= FIT
    for batch in batches:
      assert max(LENGTHS[batch.indices]) <= batch.length
    # Of each bucket but the last, at most a rest is in longer batches.
    longer = [np.sum(LENGTHS[b.indices] <= b.length - 4) for b in batches]
    assert sum(longer) <= 2 * (5 - 1)


def test_epochs_and_seeds_differ_and_steps_do_not_matter():
  key = lambda batches: [tuple(b.indices) for b in batches]
  assert key(epoch(ORDER, 0)) != key(epoch(ORDER, 1))
  other = dataclasses.replace(ORDER, seed=4)
  assert key(epoch(ORDER, 0)) != key(epoch(other, 0))
  again = dataclasses.replace(ORDER)
  last = again.train(len(epoch(ORDER, 0)) + 2)  # asked for out of order
  np.testing.assert_array_equal(last.indices, epoch(ORDER, 1)[2].indices)


def test_evaluation_has_every_example_once():
  found = [i for batch in ORDER.evaluation for i in batch.indices]
  assert sorted(found) == list(range(len(LENGTHS)))
  assert {batch.length for batch in ORDER.evaluation} == {4, 8, 12}


@pytest.fixture
def config(tmp_path):
  rows = collections.OrderedDict(
    {'de': ['ja\tyes', 'nein danke\tno, thank you'], 'ru': ['да\tyes'] * 4}
  )
  for language, lines in rows.items():
    text = '\n'.join(lines) + '\n'
    (tmp_path / f'train.{language}-en.tsv').write_text(text)
  (tmp_path / 'val.tsv').write_text('ja\tyes\n')
  return pairs.PairDataConfig(
    source=f'parallel:{tmp_path}',
    eval_split='train',
    tokenizer='bytes',
    buckets=(8, 16),
    batch_size=2,
    eval_batch_size=4,
    threads=0,
  )


def test_languages_need_their_tokens(config):
  expected = "a tokenizer with the special token '<de>'|'<ru>'"
  with pytest.raises(UserError, match=expected):
    pairs.train_batches(config, seed=0)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'buckets': ()}, 'ascending numbers'),
    ({'buckets': (8, 4)}, 'ascending numbers'),
    ({'batch_size': 50}, 'at most 1, the examples that are short enough'),
    ({'tokenizer': ''}, "'bytes', 'bpe:FILE.json'"),
  ],
)
def test_bad_fields(config, fields, message):
  config = dataclasses.replace(config, train_split='val', **fields)
  with pytest.raises(UserError, match=message):
    next(pairs.train_batches(config, seed=0))


def test_what_is_too_long_is_counted(config, tmp_path):
  path = tmp_path / 'pairs.tsv'
  path.write_text('1234567\tyes\n12345678\tyes\nja\t123456789\n')
  config = dataclasses.replace(config, source=f'parallel:{path}', buckets=(8,))
  assert pairs.left_out(config) == '2 of 3 pairs: above 8 tokens'  # with EOS


def test_what_is_in_a_batch(config, tmp_path):
  lines = ['a\tbc', 'def\tghij klmn opqr stuv']
  (tmp_path / 'own.tsv').write_text('\n'.join(lines))
  config = dataclasses.replace(config, source=f'parallel:{tmp_path}/own.tsv')
  batches = list(pairs.eval_batches(config, 'train'))
  short, long = sorted(batches, key=lambda b: b['source'].shape[1])
  assert short['source'].shape == (4, 8) and long['source'].shape == (4, 16)
  eos = 256
  np.testing.assert_array_equal(short['source'][0, :3], [97, eos, 0])
  np.testing.assert_array_equal(
    short['source_mask'][0, :3], [True, True, False]
  )
  np.testing.assert_array_equal(short['tokens'][0, :4], [eos, 98, 99, 0])
  np.testing.assert_array_equal(short['targets'][0, :4], [98, 99, eos, 0])
  np.testing.assert_array_equal(short['weights'][0, :4], [1, 1, 1, 0])
  np.testing.assert_array_equal(short['mask'], [1, 0, 0, 0])
  np.testing.assert_array_equal(short['weights'][1:], 0)
  # Too long: cut, EOS the last.
  assert long['targets'][0, -1] == eos and long['weights'][0].sum() == 16
  assert long['tokens'][0, -1] == long['targets'][0, -2]
  texts = pairs.load(config, 'train').texts
  assert texts.sources[long['index'][0]] == 'def'


def test_processes_read_rows_of_the_same_batches(config, tmp_path):
  lines = [f'{"x" * (i % 9)}\t{"y" * (i % 7)}' for i in range(40)]
  (tmp_path / 'own.tsv').write_text('\n'.join(lines))
  source = f'parallel:{tmp_path}/own.tsv'
  config = dataclasses.replace(config, source=source, batch_size=4)
  whole = pairs.train_batches(config, seed=1)
  parts = [
    pairs.train_batches(config, seed=1, rows=np.array(rows))
    for rows in ([0, 3], [1, 2])
  ]
  later = pairs.train_batches(config, seed=1, start_step=11)
  for step in range(14):
    batch, (first, second) = next(whole), (next(p) for p in parts)
    for name, array in batch.items():
      np.testing.assert_array_equal(array[[0, 3]], first[name])
      np.testing.assert_array_equal(array[[1, 2]], second[name])
    if step == 11:
      np.testing.assert_array_equal(batch['index'], next(later)['index'])
