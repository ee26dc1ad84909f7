"""Against a loop over documents that knows no stream."""

import numpy as np
import pytest

from softmoe.data.text import corpus, windows
from softmoe.data.text.tokenizers import byte
from softmoe.errors import UserError

_TEXTS = ('abcdefghijk', 'l', '', 'mnopé', 'q' * 20, 'rst')
_EOS = 256


def _windows(length, stride, texts=_TEXTS):
  made = corpus.of_documents(list(texts), byte.Bytes())
  return windows.Windows(made, length, stride)


def _pairs(texts=_TEXTS):
  """Returns (document, token, target, size of the document) of all targets."""
  found = []
  for number, text in enumerate(texts):
    ids = [*text.encode(), _EOS]
    for before, target in zip([_EOS, *ids], ids, strict=False):
      found.append((number, before, target, len(ids)))
  return found


def _expected(length, stride):
  """Returns the examples, each target at its place, by a plain loop."""
  pairs, seen, examples, start = _pairs(), set(), [], 0
  while True:
    example = {
      name: np.zeros(
        length, np.float32 if name in ('weights', 'share') else np.int32
      )
      for name in (
        'tokens',
        'targets',
        'weights',
        'segments',
        'positions',
        'bytes',
        'share',
      )
    }
    documents = []
    for place, (number, before, target, size) in enumerate(
      pairs[start : start + length]
    ):
      documents.append(number)
      values = {
        'tokens': before,
        'targets': target,
        'weights': start + place not in seen,
        'segments': number - documents[0] + 1,
        'positions': documents.count(number) - 1,
        'bytes': target != _EOS,
        'share': (start + place not in seen) / size,
      }
      seen.add(start + place)
      for name, value in values.items():
        example[name][place] = value
    examples.append(example)
    if start + length >= len(pairs):
      return examples
    start += stride


@pytest.mark.parametrize('length', [1, 2, 5, 16, 47, 48, 60])
@pytest.mark.parametrize('part', [0.01, 0.4, 1])
def test_windows_are_those_of_a_loop(length, part):
  stride = max(int(length * part), 1)
  found, expected = _windows(length, stride), _expected(length, stride)
  assert len(found) == len(expected)
  for index, example in enumerate(expected):
    actual = found.eval_example(index)
    assert actual.keys() == example.keys()
    for name, values in example.items():
      np.testing.assert_array_equal(actual[name], values, name)
      assert actual[name].dtype == values.dtype
    plain = found.example(index)
    assert plain.keys() == example.keys() - {'share'}
    for name, values in plain.items():
      np.testing.assert_array_equal(actual[name], values)


@pytest.mark.parametrize('stride', range(1, 9))
def test_every_target_is_scored_once(stride):
  found = _windows(8, stride)
  examples = [found.eval_example(i) for i in range(len(found))]
  whole = {n: np.concatenate([e[n] for e in examples]) for n in examples[0]}
  scored = whole['weights'] == 1
  targets = [target for _, _, target, _ in _pairs()]
  np.testing.assert_array_equal(whole['targets'][scored], targets)
  utf8 = sum(len(text.encode()) for text in _TEXTS)
  assert (whole['bytes'] * whole['weights']).sum() == utf8
  assert whole['share'].sum() == pytest.approx(len(_TEXTS))
  assert set(whole['weights']) <= {0, 1}


def test_a_shorter_stride_gives_targets_more_before_them():
  """All but those of the first window have length - stride tokens or more."""
  found = _windows(16, 4)
  for index in range(1, len(found)):
    first = int(found.example(index)['weights'].argmax())
    assert first == 12


def test_one_short_document():
  example = _windows(4, 4, ['a']).eval_example(0)
  rows = {name: array.tolist() for name, array in example.items()}
  assert rows == {
    'tokens': [256, 97, 0, 0],
    'targets': [97, 256, 0, 0],
    'weights': [1, 1, 0, 0],
    'segments': [1, 1, 0, 0],
    'positions': [0, 1, 0, 0],
    'bytes': [1, 0, 0, 0],
    'share': [0.5, 0.5, 0, 0],
  }


def test_a_token_beyond_the_vocabulary_is_told():
  tokens = np.array([5, 300, 256], np.uint16)
  wrong = corpus.Corpus(tokens, byte.Bytes(), '')
  with pytest.raises(UserError, match='token 300.*below 257'):
    windows.Windows(wrong, 4, 4).example(0)


def test_ends_of_documents_are_found_across_chunks(monkeypatch):
  made = _windows(4, 4).corpus
  expected = np.cumsum([len(text.encode()) + 1 for text in _TEXTS])
  for chunk in (1, 5, 100):
    monkeypatch.setattr(corpus, '_CHUNK', chunk)
    found = corpus.document_ends(made.tokens, _EOS)
    np.testing.assert_array_equal(found, expected)


def test_a_large_vocabulary_is_kept_in_32_bits(monkeypatch):
  tokenizer = byte.Bytes()
  assert corpus.of_documents(['a'], tokenizer).tokens.dtype == np.uint16
  tokenizer.num_bytes = np.zeros(2**16 + 1, np.int32)
  assert corpus.of_documents(['a'], tokenizer).tokens.dtype == np.uint32
