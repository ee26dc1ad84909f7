import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as pillow

from softmoe.data.images import sources
from softmoe.errors import UserError

tfds = pytest.importorskip('tensorflow_datasets')


class TinyImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Ten plain images for training, four for testing, and a damaged one."""

  name = 'tiny_images'
  code_path = None  # else the library imports a package that it lacks
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {
      'image': tfds.features.Image(shape=(6, 5, 3)),
      'label': tfds.features.ClassLabel(num_classes=3),
      'caption': tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, manager):
    del manager
    return {
      'train': self._generate_examples(10),
      'test': self._generate_examples(4),
      'damaged': [(0, {'image': io.BytesIO(), 'label': 0, 'caption': ''})],
    }

  def _generate_examples(self, count):
    for i in range(count):
      file = io.BytesIO()
      pillow.new('RGB', (5, 6), (i, 100, 200)).save(file, 'PNG')
      file.seek(0)
      yield i, {'image': file, 'label': i % 3, 'caption': 'tiny'}


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  builder = TinyImages(data_dir=tmp_path, file_format='array_record')
  builder.download_and_prepare()
  return tmp_path


def test_array_record(data_dir):
  source = sources.open_source('tfds:tiny_images', 'train')
  assert (len(source), source.num_classes) == (10, 3)
  examples = [source[i] for i in range(10)]
  assert examples[0]['image'].shape == (6, 5, 3)
  assert examples[0]['image'].dtype == np.uint8
  assert (examples[0]['image'][..., 1:] == (100, 200)).all()
  pixels = [int(e['image'][0, 0, 0]) for e in examples]
  assert sorted(pixels) == list(range(10))
  assert [e['label'] for e in examples] == [p % 3 for p in pixels]
  sliced = sources.open_source('tfds:tiny_images', 'train[50%:]')
  assert len(sliced) == 5
  assert int(sliced[0]['image'][0, 0, 0]) == pixels[5]


def test_tensorflow_is_never_imported(data_dir, tmp_path):
  del data_dir
  # One that could be imported: it may well be installed beside this package.
  (tmp_path / 'code/tensorflow').mkdir(parents=True)
  (tmp_path / 'code/tensorflow/__init__.py').touch()
  code = f"""
import sys
sys.path.insert(0, {str(tmp_path / 'code')!r})
from softmoe.data.images import sources
for name in ('digits', 'tfds:tiny_images'):
  sources.open_source(name, 'train')[0]
assert 'tensorflow_datasets' in sys.modules
assert 'tensorflow' not in sys.modules
import tensorflow
"""
  subprocess.run([sys.executable, '-c', code], check=True)


def test_a_corrupt_image_is_named(data_dir):
  del data_dir
  source = sources.open_source('tfds:tiny_images', 'damaged')
  expected = 'tfds:tiny_images, example 0.*an intact JPEG or PNG image'
  with pytest.raises(UserError, match=expected):
    source[0]


def test_a_missing_file_is_named(data_dir):
  (path,) = data_dir.rglob('*-train.array_record*')
  path.unlink()
  source = sources.open_source('tfds:tiny_images', 'train')
  with pytest.raises(UserError, match=f'files that can be read.*{path.name}'):
    source[0]


def test_unknown_split(data_dir):
  with pytest.raises(
    UserError, match=r"got 'val'; .*\['damaged', 'test', 'train'\]"
  ):
    sources.open_source('tfds:tiny_images', 'val')


def test_tfrecord_says_how_to_convert(data_dir):
  path = data_dir / 'tiny_images/1.0.0/dataset_info.json'
  info = json.loads(path.read_text()) | {'fileFormat': 'tfrecord'}
  path.write_text(json.dumps(info))
  command = (
    rf'tfds convert_format --dataset_version_dir={path.parent}'
    ' --out_file_format=array_record'
  )
  with pytest.raises(UserError, match=f'not tfrecord: run `{command}`'):
    sources.open_source('tfds:tiny_images', 'train')


@pytest.mark.parametrize(
  'name',
  [
    'mnist',
    'mnist:9.9.9',
    'wmt14_translate/de-en',
    'i_naturalist2021',
    'coco_captions',
    'no_such_data_set',
  ],
)
def test_not_prepared_says_how_to_prepare(tmp_path, monkeypatch, name):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  command = f'tfds build {name} --file_format=array_record'
  expected = f'prepared by `{command}`.* generated in: .*{tmp_path}'
  with pytest.raises(UserError, match=expected) as error:
    sources.open_source(f'tfds:{name}', 'train')
  assert '\n' not in str(error.value)


def test_prepared_data_need_no_code(data_dir):
  """Where the library's code of that name fails without TensorFlow."""
  for name, folder in (('coco_captions', '2014'), ('i_naturalist2021', '')):
    shutil.copytree(data_dir / 'tiny_images', data_dir / name / folder)
    source = sources.open_source(f'tfds:{name}', 'train')
    assert source[0]['image'].shape == (6, 5, 3)


@pytest.mark.parametrize('name', ['', 'not a name'])
def test_malformed_name(name):
  with pytest.raises(UserError, match='dataset_name.*version'):
    sources.open_source(f'tfds:{name}', 'train')


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
@pytest.mark.parametrize('content', ['', '{"no": 1}', None])
def test_damaged_descriptions_are_one_line(data_dir, name, content):
  path = data_dir / 'tiny_images/1.0.0' / name
  path.unlink()
  if content is not None:
    path.write_text(content)
  with pytest.raises(UserError, match='prepared by') as error:
    sources.open_source('tfds:tiny_images', 'train')
  assert '\n' not in str(error.value)


def test_no_labelled_images(data_dir):
  path = data_dir / 'tiny_images/1.0.0/dataset_info.json'
  keys = {
    'tuple': {'items': [{'featureKey': 'caption'}, {'featureKey': 'label'}]}
  }
  path.write_text(
    json.dumps(json.loads(path.read_text()) | {'supervisedKeys': keys})
  )
  with pytest.raises(UserError, match='a data set of uint8 images'):
    sources.open_source('tfds:tiny_images', 'train')
