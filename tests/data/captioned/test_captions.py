"""Texts of classes: read, joined with images, in batches."""

import json

import numpy as np
import pytest

from softmoe.data.captioned import batches, captions, sources
from softmoe.data.captioned.config import CaptionedDataConfig
from softmoe.data.images import sources as image_sources
from softmoe.data.text.tokenizers import registry
from softmoe.errors import UserError
from tests.data.images import test_glyphs

FILE = 'tests/data/captioned/captions.jsonl'
TOKENIZER = registry.open_tokenizer('bytes')
EOS = TOKENIZER.eos


def config(**changes):
  fields = dict(
    source='fake:10x9x1,classes=5',
    captions=FILE,
    length=6,
    batch_size=8,
    eval_batch_size=8,
    threads=0,
  )
  return CaptionedDataConfig(**fields | changes)


def text_of(tokens, mask):
  assert tokens[mask][-1] == EOS
  return TOKENIZER.decode(tokens[mask])


def test_texts_are_in_the_order_of_the_names(tmp_path):
  for name, lines in {'a': [('x', '1'), ('y', '2')], 'b': [('x', '3')]}.items():
    text = '\n'.join(json.dumps({'class': c, 'text': t}) for c, t in lines)
    (tmp_path / f'{name}.jsonl').write_text(f'{text}\n\n')
  assert captions.read(str(tmp_path), ['y', 'x']) == [['2'], ['1', '3']]
  before = captions.fingerprint(str(tmp_path))
  (tmp_path / 'b.jsonl').write_text('{"class": "x", "text": "4"}')
  assert captions.fingerprint(str(tmp_path)) != before


@pytest.mark.parametrize(
  ('content', 'line'),
  [
    ('{', r'line 1.*; a JSON object'),
    ('{"class": "0"}', "KeyError: 'text'"),
    ('{"class": "0", "text": 1}', 'line 1'),
    ('{"class": "0", "text": " "}', 'the text is empty'),
    ('["0", "zero"]', 'line 1'),
    ('{"class": "0", "text": "zero"}', "every class; '1' has none"),
  ],
)
def test_damage_is_named(tmp_path, content, line):
  path = tmp_path / 'captions.jsonl'
  path.write_text(content)
  with pytest.raises(UserError, match=f'config.data.captions: got .*{line}'):
    captions.read(str(path), ['0', '1'])


def test_a_folder_without_files_and_a_file_that_is_not_there(tmp_path):
  for path, line in ((tmp_path, 'a folder with'), (tmp_path / 'a', 'No such')):
    with pytest.raises(UserError, match=line):
      captions.read(str(path), ['0'])


@pytest.mark.parametrize(
  ('fields', 'line'),
  [
    ({'source': 'webdatset:/d'}, 'source: got .*; one of .*webdataset'),
    ({'source': ''}, "source: got ''; one of"),
    ({'source': 'digits'}, "captions: got ''; texts of each class; only"),
    ({'source': 'webdataset:/d', 'captions': FILE}, 'source: got .*; one of'),
  ],
)
def test_an_unknown_source_and_one_without_texts(fields, line):
  data = config(**{'captions': ''} | fields)
  with pytest.raises(UserError, match=f'config.data.{line}'):
    sources.open_split(data, 'train')


def test_classes_have_names(tmp_path):
  names = image_sources.class_names
  assert names('digits', 'train') == [*'0123456789']
  for split in ('train', 'test'):
    for name in ('cat', 'bee'):
      (tmp_path / 'folder' / split / name).mkdir(parents=True)
  assert names(f'folder:{tmp_path}/folder', 'test[:2]') == ['bee', 'cat']
  (tmp_path / 'glyphs').mkdir()
  test_glyphs.write(tmp_path / 'glyphs')
  assert names(f'glyphs:{tmp_path}/glyphs', 'val') == ['亜', '唖']
  with pytest.raises(UserError, match="'train', 'val'"):
    names(f'glyphs:{tmp_path}/glyphs', 'tests')


def test_every_text_of_a_class_is_trained_on():
  stream = batches.train_batches(config(), TOKENIZER, seed=0)
  seen = set()
  for _ in range(12):
    batch = next(stream)
    assert batch['image'].shape == (8, 8, 8, 1)
    assert batch['tokens'].dtype == batch['label'].dtype == np.int32
    rows = zip(batch['label'], batch['tokens'], batch['text_mask'], strict=True)
    seen |= {(int(label), text_of(t, m)) for label, t, m in rows}
  # 'number 3' is cut, and ends with EOS nevertheless.
  assert seen == {(c, t) for c in range(5) for t in ('numbe', 'all')}


def test_batches_follow_from_seed_and_step():
  whole = batches.train_batches(config(), TOKENIZER, seed=3)
  expected = [next(whole) for _ in range(3)][2]
  rows = np.array([1, 6])
  part = batches.train_batches(
    config(), TOKENIZER, seed=3, start_step=2, rows=rows
  )
  found = next(part)
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value[rows])


def test_evaluation_takes_texts_in_turn_and_fills_the_last_batch_up():
  found = list(batches.eval_batches(config(), TOKENIZER, 'test[:11]'))
  assert [batch['mask'].sum() for batch in found] == [8, 3]
  texts = [
    text_of(t, m)
    for batch in found
    for t, m, real in zip(
      batch['tokens'], batch['text_mask'], batch['mask'], strict=True
    )
    if real
  ]
  assert texts == ['numbe' if i % 2 == 0 else 'all' for i in range(11)]
  assert not found[1]['text_mask'][3:].any()


def test_texts_alone():
  (batch,) = batches.text_batches(config(), TOKENIZER, ['ab', ''])
  assert text_of(batch['tokens'][0], batch['text_mask'][0]) == 'ab'
  assert batch['tokens'][1].tolist() == [EOS, 0, 0, 0, 0, 0]
  assert batch['mask'].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_fingerprints(tmp_path):
  test_glyphs.write(tmp_path)
  data = config(source=f'glyphs:{tmp_path}')
  first = sources.fingerprint(data)
  test_glyphs.write(tmp_path, fingerprint='other')
  assert len(first) == 64 and sources.fingerprint(data) != first
  assert sources.fingerprint(config(captions='')) == ''
