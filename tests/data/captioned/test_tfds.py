"""Images with texts of TensorFlow Datasets."""

import io

import pytest
from PIL import Image as pillow

from softmoe.data.captioned import sources
from softmoe.data.captioned.config import CaptionedDataConfig
from softmoe.errors import UserError

tfds = pytest.importorskip('tensorflow_datasets')


class TinyPairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Four images, each with a text or more, in a form for each config."""

  name = 'tiny_pairs'
  code_path = None  # else the library imports a package that it lacks
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=name)
    for name in ('text', 'caption', 'captions', 'title')
  ]

  def _info(self):
    name, text = self.builder_config.name, tfds.features.Text()
    many = tfds.features.Sequence({'text': text, 'id': tfds.features.Text()})
    kinds = {'captions': many, 'caption': tfds.features.Sequence(text)}
    features = {
      'image': tfds.features.Image(shape=(6, 5, 3)),
      name: kinds.get(name, text),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, manager):
    del manager
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(4):
      file = io.BytesIO()
      pillow.new('RGB', (5, 6), (i, 100, 200)).save(file, 'PNG')
      file.seek(0)
      texts = [f'{i} é', f'{i} b']
      forms = {
        'captions': [{'text': text, 'id': 'x'} for text in texts],
        'caption': texts,
      }
      name = self.builder_config.name
      yield i, {'image': file, name: forms.get(name, texts[0])}


@pytest.fixture
def prepare(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))

  def prepare(name):
    builder = TinyPairs(
      config=name, data_dir=tmp_path, file_format='array_record'
    )
    builder.download_and_prepare()
    return CaptionedDataConfig(source=f'tfds:tiny_pairs/{name}')

  return prepare


@pytest.mark.parametrize('name', ['text', 'caption', 'captions'])
def test_every_image_is_a_group_with_its_texts(prepare, name):
  found = sources.open_split(prepare(name), 'train[1:]')
  assert len(found.images) == 3
  for example in (found.images[i] for i in range(3)):
    number = int(example['image'][0, 0, 0])
    texts = [f'{number} é', f'{number} b'][: 1 if name == 'text' else 2]
    assert found.texts[example['label']] == texts


def test_a_data_set_without_texts_and_an_unknown_split(prepare):
  with pytest.raises(UserError, match="'image' and one of"):
    sources.open_split(prepare('title'), 'train')
  with pytest.raises(UserError, match=r"train_split|split: got 'val'"):
    sources.open_split(prepare('text'), 'val')
