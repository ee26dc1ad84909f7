import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from softmoe.data.text import tokenize, tokens, train_tokenizer
from softmoe.data.text.tokenizers import byte, registry
from softmoe.errors import UserError
from tests.data.text import trained


@pytest.fixture
def source(tmp_path):
  """Returns the name of a folder with two splits."""
  for split, texts in (('train', trained.TEXTS * 20), ('test', ('é', 'b'))):
    for i, text in enumerate(texts):
      path = tmp_path / 'source' / split / f'{i}.txt'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text)
  return f'text:{tmp_path}/source'


@pytest.mark.parametrize('kind, size', [('bpe', 300), ('sentencepiece', 310)])
def test_a_tokenizer_is_trained(source, kind, size, tmp_path, capsys):
  out = tmp_path / 'new' / 'file'
  arguments = [kind, source, str(out), f'--vocab_size={size}']
  train_tokenizer.main([*arguments, '--special', '<2en>', '<2de>'])
  made = registry.open_tokenizer(f'{kind}:{out}')
  assert made.vocab_size == size
  assert set(made.special) == {'<2en>', '<2de>'}
  digest = hashlib.sha256(out.read_bytes()).hexdigest()
  said = f'{out}: {size} tokens, SHA-256 {digest}\n'
  assert capsys.readouterr().out == said
  with pytest.raises(UserError, match='a path where there is no file yet'):
    train_tokenizer.main(arguments)
  assert [path.name for path in out.parent.iterdir()] == ['file']


@pytest.mark.parametrize(
  'options, expected',
  [
    (['--special', 'a', 'a'], '--special'),
    (['--special', '<eos>'], '--special'),
    (['--special', ''], '--special'),
    (['--vocab_size=0'], 'vocab_size'),
    (['--vocab_size=9999'], '--vocab_size: got 9999; at most'),
    (['--split=valid'], r"split: got 'valid'.*\['test', 'train'\]"),
    (['--size=3'], 'unrecognized arguments'),
  ],
)
def test_wrong_arguments_write_nothing(source, options, expected, tmp_path):
  out = tmp_path / 'new' / 'file'
  with pytest.raises(UserError, match=expected):
    train_tokenizer.main(['bpe', source, str(out), *options])
  assert not out.parent.exists()


def test_tokens_are_described(source, tmp_path, capsys):
  out = tmp_path / 'tokens.bin'
  tokenize.main([source, 'bytes', str(out)])
  manifest = json.loads((tmp_path / 'tokens.bin.json').read_text())
  sizes = manifest['splits']
  assert sizes['test'] == len('é'.encode()) + len('b') + 2
  assert manifest == {
    'dtype': 'uint16',
    'eos': 256,
    'tokenizer': {'name': 'bytes', 'sha256': hashlib.sha256().hexdigest()},
    'splits': sizes,
    'sha256': hashlib.sha256(out.read_bytes()).hexdigest(),
  }
  assert len(np.fromfile(out, np.uint16)) == sum(sizes.values())
  said = [f'{name}: {size:,} tokens' for name, size in sizes.items()]
  assert capsys.readouterr().out.splitlines() == said
  with pytest.raises(UserError, match='a path where there is no file yet'):
    tokenize.main([source, 'bytes', str(out)])


def test_a_wrong_document_leaves_no_file(source, tmp_path):
  (tmp_path / 'source' / 'train' / 'z').write_bytes(b'\xff')
  with pytest.raises(UserError, match='train/z.*valid UTF-8'):
    tokenize.main([source, 'bytes', str(tmp_path / 'new' / 'tokens')])
  assert not list((tmp_path / 'new').iterdir())


def test_a_full_disk_is_one_line_and_leaves_no_file(
  source, tmp_path, full_disk
):
  (tmp_path / 'source' / 'train' / 'large').write_bytes(b'a' * (full_disk - 1))
  line = "OUT: got '.*/new/tokens'; a path with room for all of it"
  with pytest.raises(UserError, match=line):
    tokenize.main([source, 'bytes', str(tmp_path / 'new' / 'tokens')])
  assert not list((tmp_path / 'new').iterdir())


def test_tokens_are_not_tokenized_again(tmp_path):
  with pytest.raises(UserError, match='these are tokens already'):
    tokenize.main(['tokens:a', 'bytes', str(tmp_path / 'new')])


def _written(tmp_path, **changes):
  """Writes tokens whose JSON is changed, and returns their path."""
  path = tmp_path / 'tokens'
  stream = np.array([97, 256, 98, 256], np.uint16)
  made = byte.Bytes()
  manifest = tokens.write(
    path, 'bytes', made, {'train': [stream], 'test': [stream]}
  )
  (tmp_path / 'tokens.json').write_text(json.dumps(manifest | changes))
  return str(path)


def _open(path, split='train'):
  return tokens.open_split(path, split, 'bytes', byte.Bytes())


def test_tokens_of_a_slice(tmp_path):
  path = _written(tmp_path)
  assert _open(path).tokens.tolist() == [97, 256, 98, 256]
  assert isinstance(_open(path).tokens.base, np.memmap)
  assert _open(path, 'test[1:]').tokens.tolist() == [98, 256]
  assert _open(path, 'test[1:]').ends.tolist() == [2]


@pytest.mark.parametrize(
  'changes',
  [
    {'dtype': 'int64'},
    {'splits': {'train': 0}},
    {'splits': {'train': 4.0}},
    {'splits': ['train']},
    {'tokenizer': 'bytes'},
    {'sha256': None},
  ],
)
def test_wrong_descriptions(tmp_path, changes):
  with pytest.raises(
    UserError, match=r'tokens.json.*a JSON file as `python -m'
  ):
    _open(_written(tmp_path, **changes))


def test_tokens_that_are_not_as_described(tmp_path):
  path = _written(tmp_path, splits={'train': 5, 'test': 3})
  with pytest.raises(UserError, match='8 tokens, the last of each split'):
    _open(path)
  with pytest.raises(UserError, match=r"'val'; the source has \['test', 'tra"):
    _open(path, 'val')
  with open(path, 'ab') as file:
    file.write(b'12')
  with pytest.raises(UserError, match='8 tokens, the last of each split'):
    _open(path, 'test')


def test_tokens_of_another_tokenizer(tmp_path):
  path = _written(tmp_path, tokenizer={'name': 'bpe:a.json', 'sha256': 'b'})
  with pytest.raises(UserError, match="config.data.tokenizer.*'bpe:a.json'"):
    _open(path)


@pytest.mark.parametrize('missing', ['tokens', 'tokens.json'])
def test_missing_tokens(tmp_path, missing):
  path = _written(tmp_path)
  (tmp_path / missing).unlink()
  with pytest.raises(UserError, match=f'{missing}.*No such file'):
    _open(path)


def test_a_wrong_argument_is_one_line(tmp_path):
  command = [sys.executable, '-m', 'softmoe.data.text.tokenize', 'text:none']
  done = subprocess.run(
    [*command, 'bytes', str(tmp_path / 'new')],
    check=False,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  expected = "error: config.data.source: got 'none'; a file, or a folder"
  assert done.stderr.startswith(expected)
  assert len(done.stderr.splitlines()) == 1
