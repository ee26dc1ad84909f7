import numpy as np
import pytest

from softmoe.data import tfds as tfds_lib
from softmoe.data.text import parallel, sources
from softmoe.errors import UserError

tfds = pytest.importorskip('tensorflow_datasets')


class TinyText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Five texts for training and two for testing; `no_text` has two of them."""

  name = 'tiny_text'
  code_path = None  # else the library imports a package that it lacks
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=name) for name in ('text', 'body', 'pair')
  ]
  KEYS = {'text': ['text', 'title'], 'body': ['body'], 'pair': ['de', 'en']}

  def _info(self):
    keys = self.KEYS[self.builder_config.name]
    features = {key: tfds.features.Text() for key in keys}
    features['number'] = tfds.features.Scalar(dtype=np.int32)
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      supervised_keys=tuple(keys) if len(keys) == 2 else None,
    )

  def _split_generators(self, manager):
    del manager
    return {
      'train': self._generate_examples(5),
      'test': self._generate_examples(2),
    }

  def _generate_examples(self, count):
    keys = self.KEYS[self.builder_config.name]
    for i in range(count):
      yield i, {key: f'{key} {i} é' for key in keys} | {'number': i}


@pytest.fixture
def prepare(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))

  def prepare(name):
    builder = TinyText(
      config=name, data_dir=tmp_path, file_format='array_record'
    )
    builder.download_and_prepare()
    return f'tfds:tiny_text/{name}'

  return prepare


@pytest.mark.parametrize('key', ['text', 'body'])
def test_documents(prepare, key):
  name = prepare(key)
  assert sources.split_names(name) == ['test', 'train']
  whole = sources.open_source(name, 'train')
  texts = [whole[i] for i in range(5)]
  assert sorted(texts) == [f'{key} {i} é' for i in range(5)]
  last = sources.open_source(name, 'train[60%:]')
  assert [last[i] for i in range(2)] == texts[3:]


def test_which_text_is_not_guessed(prepare):
  with pytest.raises(UserError, match=r"one feature of text.*\['de', 'en'\]"):
    sources.open_source(prepare('pair'), 'train')


def test_pairs_are_read_once(prepare, monkeypatch):
  name, read = prepare('pair'), []
  get = tfds_lib.Examples.__getitem__
  count = lambda examples, index: read.append(index) or get(examples, index)
  monkeypatch.setattr(tfds_lib.Examples, '__getitem__', count)
  pairs = parallel.open_pairs(name, 'train')
  assert sorted(zip(pairs.sources, pairs.targets, strict=True)) == [
    (f'de {i} é', f'en {i} é') for i in range(5)
  ]
  assert pairs.languages == [''] * 5 and read == [*range(5)]
  assert len(parallel.open_pairs(name, 'test[1:]')) == 1
  with pytest.raises(UserError, match=r"'val'; the source has \['test', 'tr"):
    parallel.open_pairs(name, 'val')


def test_texts_that_are_no_pairs(prepare):
  with pytest.raises(UserError, match='a data set of translations'):
    parallel.open_pairs(prepare('body'), 'train')
