import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from softmoe.data.text.tokenizers import bpe, registry, sentencepiece
from softmoe.errors import UserError
from tests.data.text import trained

KINDS = ('bytes', 'bpe', 'sentencepiece')


@pytest.fixture(params=KINDS)
def kind(request):
  return request.param


@pytest.fixture
def tokenizer(kind, tmp_path):
  return registry.open_tokenizer(trained.name(kind, tmp_path))


@pytest.mark.parametrize('text', trained.ODD)
def test_text_comes_back_and_every_byte_counts(tokenizer, text):
  ids = tokenizer.encode(text)
  assert ids.dtype == tokenizer.num_bytes.dtype == np.int32
  assert tokenizer.decode(ids) == text
  assert tokenizer.num_bytes[ids].sum() == len(text.encode('utf-8'))
  assert tokenizer.eos not in ids
  assert not set(tokenizer.special.values()).intersection(ids.tolist())


def test_a_batch_is_each_text(tokenizer):
  for ids, text in zip(
    tokenizer.encode_batch(trained.ODD), trained.ODD, strict=True
  ):
    np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_the_vocabulary(tokenizer, kind):
  sizes = {'bytes': 257, 'bpe': 300, 'sentencepiece': 310}
  assert tokenizer.vocab_size == sizes[kind]
  assert tokenizer.num_bytes.shape == (sizes[kind],)
  assert (tokenizer.num_bytes.max() == 1) == (kind == 'bytes')
  special = {} if kind == 'bytes' else {'<2en>', '<2de>'}
  assert tokenizer.special.keys() == set(special)
  for token in (tokenizer.eos, *tokenizer.special.values()):
    assert tokenizer.num_bytes[token] == 0
  ends = np.array([tokenizer.eos, *tokenizer.special.values()], np.int32)
  ids = np.concatenate([ends, tokenizer.encode('a'), ends])
  assert tokenizer.decode(ids) == 'a'


def test_trained_tokenizers_shorten_what_they_know(tokenizer, kind):
  text = 'the quick brown fox'
  shorter = len(tokenizer.encode(text)) < len(text)
  assert shorter == (kind != 'bytes')


def test_bytes_that_are_no_text(tokenizer):
  ids = tokenizer.encode('𝕏')
  assert tokenizer.decode(ids[:-1]).startswith('\ufffd')


def test_it_is_made_again_of_its_content(tokenizer, kind, tmp_path):
  name = trained.name(kind, tmp_path)
  again = registry.from_content(
    name + '-gone' * (kind != 'bytes'), tokenizer.content
  )
  assert again.fingerprint == tokenizer.fingerprint
  assert again.fingerprint == hashlib.sha256(tokenizer.content).hexdigest()
  np.testing.assert_array_equal(again.num_bytes, tokenizer.num_bytes)
  ids = tokenizer.encode('été')
  np.testing.assert_array_equal(again.encode('été'), ids)


def test_another_process_trains_the_same_files():
  """And imports the packages when they are asked for, not before."""
  code = """
import hashlib, sys
from softmoe.data.text import sources, tokens
from softmoe.data.text.tokenizers import registry
from tests.data.text import trained
heavy = {'tokenizers', 'sentencepiece', 'tensorflow_datasets', 'tensorflow'}
assert not heavy.intersection(sys.modules)
for kind in ('bpe', 'sentencepiece'):
  print(hashlib.sha256(trained.content(kind)).hexdigest())
"""
  done = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  )
  digests = [hashlib.sha256(trained.content(k)).hexdigest() for k in KINDS[1:]]
  assert done.stdout.split() == digests


@pytest.mark.parametrize('module', [bpe, sentencepiece])
def test_sizes_that_do_not_suit_the_text(module):
  with pytest.raises(UserError, match='--vocab_size: got 100; '):
    module.train(iter(['some text']), 100, [])
  with pytest.raises(UserError, match='--vocab_size: got 5000; '):
    module.train(iter(['some text']), 5000, [])


@pytest.mark.parametrize('module', [bpe, sentencepiece])
def test_a_wrong_document_ends_the_training(module):
  def texts():
    yield 'some text'
    raise UserError('document', 'a', 'a good one')

  with pytest.raises(UserError, match='document: got'):
    module.train(texts(), 300, [])


@pytest.mark.parametrize(
  'name', ['', 'byte', 'bytes:x', 'bpe', 'bpe:', 'sentencepiece:', 'word:a']
)
def test_unknown_names(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a').touch()
  (tmp_path / 'x').touch()
  with pytest.raises(UserError, match="'bytes', 'bpe:FILE.json' or"):
    registry.open_tokenizer(name)


@pytest.mark.parametrize('kind', KINDS[1:])
@pytest.mark.parametrize('content', [b'', b'{}', b'\xff' * 99, b'{"a": 1'])
def test_wrong_files(kind, content, tmp_path):
  path = tmp_path / 'file'
  with pytest.raises(UserError, match=f'{path}.*a file that can be read'):
    registry.open_tokenizer(f'{kind}:{path}')
  path.write_bytes(content)
  expected = 'config.data.tokenizer.*(byte-level BPE|SentencePiece model)'
  with pytest.raises(UserError, match=expected):
    registry.open_tokenizer(f'{kind}:{path}')


def _changed(change):
  """Returns the trained BPE with its JSON changed."""
  values = json.loads(trained.content('bpe'))
  change(values)
  return json.dumps(values).encode()


def _without_byte(values):
  values['model']['vocab'].pop('Ķ')


@pytest.mark.parametrize(
  'change, expected',
  [
    (_without_byte, 'byte-level BPE'),
    (lambda v: v.update(pre_tokenizer=None), 'byte-level BPE'),
    (lambda v: v['added_tokens'].pop(0), r"special tokens \['<eos>', "),
  ],
)
def test_a_bpe_of_another_kind(change, expected):
  with pytest.raises(UserError, match=expected):
    registry.from_content('bpe:file', _changed(change))


def test_a_bpe_of_others():
  """GPT-2's EOS, a token of spaces, and settings for short texts."""

  def change(values):
    values['added_tokens'][0]['content'] = '<|endoftext|>'
    vocab = values['model']['vocab']
    vocab['<|endoftext|>'] = vocab.pop('<eos>')
    spaces = {'id': 300, 'content': ' ' * 4, 'special': False}
    values['added_tokens'].append(values['added_tokens'][0] | spaces)
    values['truncation'] = {
      'direction': 'Right',
      'max_length': 2,
      'strategy': 'LongestFirst',
      'stride': 0,
    }

  found = registry.from_content('bpe:file', _changed(change))
  assert (found.eos, found.vocab_size) == (0, 301)
  for text in (*trained.ODD, 'é    x'):
    ids = found.encode(text)
    assert found.decode(ids) == text
    assert found.num_bytes[ids].sum() == len(text.encode())
  assert 300 in ids


@pytest.mark.parametrize(
  'kind, package', [('bpe', 'tokenizers'), ('sentencepiece', 'sentencepiece')]
)
def test_a_missing_package_says_what_to_install(kind, package, monkeypatch):
  content = trained.content(kind)
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(UserError, match=r"pip install 'softmoe\[text\]'"):
    registry.from_content(f'{kind}:file', content)
