import itertools
import json

import numpy as np
import pytest

from softmoe.data.text import batches, sources, tokenize
from softmoe.data.text.config import TextDataConfig
from softmoe.data.text.tokenizers import registry
from softmoe.errors import UserError
from tests.data.text import trained


@pytest.fixture
def source(tmp_path):
  """Returns the name of 40 short documents."""
  lines = [json.dumps({'text': f'{i} ' * (i % 7 + 1)}) for i in range(40)]
  path = tmp_path / 'source.jsonl'
  path.write_text('\n'.join(lines))
  return f'jsonl:{path}'


def _config(source, **fields):
  fields = {
    'length': 10,
    'batch_size': 8,
    'eval_batch_size': 8,
    'threads': 1,
  } | fields
  return TextDataConfig(source=source, **fields)


def _train(config, count=6, **options):
  options = {'seed': 0} | options
  return list(itertools.islice(batches.train_batches(config, **options), count))


def _assert_equal(actual, expected):
  for a, b in zip(actual, expected, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      assert a[name].dtype == b[name].dtype
      np.testing.assert_array_equal(a[name], b[name])


def test_shapes_and_types(source):
  config = _config(source)
  names = ('tokens', 'targets', 'weights', 'segments', 'positions', 'bytes')
  floats = ('weights', 'share', 'mask')
  (batch,) = _train(config, 1)
  assert tuple(batch) == names
  for evaluated in batches.eval_batches(config, 'train[90%:]'):
    assert tuple(evaluated) == (*names, 'share', 'mask')
    for name, array in (*batch.items(), *evaluated.items()):
      assert array.dtype == (np.float32 if name in floats else np.int32)
      assert array.shape == ((8,) if name == 'mask' else (8, 10))


def test_an_epoch_has_every_target_of_the_split_once(source):
  config = _config(source, batch_size=1, train_split='train[:50%]')
  found = sources.open_source(source, 'train[:50%]')
  text = [found[i].encode() for i in range(20)]
  targets = sorted(b''.join(text)) + [256] * 20
  windows = -(-len(targets) // 10)
  epoch = _train(config, windows)
  scored = [b['targets'][b['weights'] > 0] for b in epoch]
  assert sorted(np.concatenate(scored).tolist()) == targets


@pytest.mark.parametrize('start', [0, 4])
@pytest.mark.parametrize(
  'rows', [np.arange(4), np.arange(4, 8), np.array([6, 1])]
)
def test_batches_do_not_depend_on_who_reads_which_rows(source, start, rows):
  config = _config(source)
  part = _train(config, 6 - start, start_step=start, rows=rows)
  whole = _train(config)[start:]
  rows = np.sort(rows)
  _assert_equal(part, [{n: a[rows] for n, a in b.items()} for b in whole])


def test_seeds_differ(source):
  first, second = (_train(_config(source), 1, seed=s)[0] for s in (0, 1))
  assert (first['tokens'] != second['tokens']).any()


@pytest.mark.parametrize('stride', [0, 1, 3, 10])
def test_evaluation_scores_every_byte_once(source, stride):
  config = _config(source, stride=stride)
  found = sources.open_source(source, 'train[80%:]')
  texts = [found[i] for i in range(8)]
  whole = list(batches.eval_batches(config, 'train[80%:]'))
  total = {n: sum(float(b[n].sum()) for b in whole) for n in whole[0]}
  assert total['weights'] == sum(len(t.encode()) + 1 for t in texts)
  assert total['share'] == pytest.approx(8)
  size = sum(float((b['bytes'] * b['weights']).sum()) for b in whole)
  assert size == sum(len(t.encode()) for t in texts)
  for batch in whole:
    padding = batch['mask'] == 0
    assert not any(array[padding].any() for array in batch.values())
    assert (batch['segments'][~padding, 0] == 1).all()
  parts = [
    batches.eval_batches(config, 'train[80%:]', rows=np.arange(i, 8, 2))
    for i in range(2)
  ]
  for batch, *halves in zip(whole, *parts, strict=True):
    for i, half in enumerate(halves):
      _assert_equal([half], [{n: a[i::2] for n, a in batch.items()}])


@pytest.mark.parametrize('kind', ['bytes', 'bpe', 'sentencepiece'])
def test_tokens_in_a_file_give_the_same_batches(source, kind, tmp_path, capsys):
  tokenizer = trained.name(kind, tmp_path)
  out = tmp_path / 'new' / 'tokens.bin'
  tokenize.main([source, tokenizer, str(out)])
  config = _config(source, tokenizer=tokenizer)
  ready = _config(f'tokens:{out}', tokenizer=tokenizer)
  _assert_equal(_train(ready), _train(config))
  for split in ('train', 'train[25%:50%]', 'train[-1:]'):
    _assert_equal(
      batches.eval_batches(ready, split), batches.eval_batches(config, split)
    )
  size = out.stat().st_size // 2
  assert capsys.readouterr().out == f'train: {size:,} tokens\n'


def test_the_fingerprint_follows_what_is_read(source, tmp_path):
  """Of the two splits, and of no field that reads nothing else."""

  def of(source=source, **fields):
    return batches.fingerprint(_config(source, **fields))

  assert of() == of(length=5, batch_size=3)
  bpe = trained.name('bpe', tmp_path)
  found = [of(), of(tokenizer=bpe), of(train_split='train[:80%]')]
  assert len(set(found)) == 3
  assert all(len(each) == 64 for each in found)
  text = (tmp_path / 'source.jsonl').read_text()
  for i, changed in enumerate((text.replace('39', '38'), text + '\n')):
    path = tmp_path / f'{i}.jsonl'
    path.write_text(changed)
    assert (of(f'jsonl:{path}') == of()) == (i == 1)


def test_defaults_read_the_standard_library():
  config = TextDataConfig(eval_batch_size=4)
  (batch,) = _train(config, 1)
  assert batch['tokens'].shape == (128, 256)
  text = registry.open_tokenizer('bytes').decode(batch['tokens'].reshape(-1))
  assert 'self.' in text
  assert 'import ' in text


@pytest.mark.parametrize(
  'field, value, expected',
  [
    ('source', 'jsonl:missing', 'a file, or a folder'),
    ('tokenizer', 'word', "'bytes', 'bpe:FILE.json'"),
  ],
)
def test_wrong_fields(source, field, value, expected):
  config = _config(**{'source': source} | {field: value})
  with pytest.raises(UserError, match=f'config.data.{field}: got.*{expected}'):
    _train(config, 1)


def test_wrong_stride(source):
  config = _config(source, stride=11)
  expected = 'config.data.stride: got .*; 0 to config.data.length, 10'
  with pytest.raises(UserError, match=expected):
    batches.eval_batches(config, 'train')


def test_wrong_splits(source):
  for split, expected in (('test', r"\['train'\]"), ('train[5:5]', 'of 40')):
    with pytest.raises(UserError, match=f'^split: got .*{expected}'):
      batches.eval_batches(_config(source), split)
    for name in ('train_split', 'eval_split'):
      config = _config(source, **{name: split})
      with pytest.raises(UserError, match=f'config.data.{name}: got'):
        batches.fingerprint(config)
