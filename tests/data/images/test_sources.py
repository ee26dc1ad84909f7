import gzip
import struct
import subprocess
import sys

import numpy as np
import pytest

from softmoe.data.images import sources
from softmoe.errors import UserError


def _write_idx(path, array, magic=None):
  header = magic or bytes((0, 0, 8, array.ndim))
  data = header + struct.pack(f'>{array.ndim}I', *array.shape)
  data += array.astype(np.uint8).tobytes()
  path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


def _write_idx_folder(folder, suffix='', prefix='train', labels=(3, 1)):
  images = np.arange(2 * 4 * 5).reshape(2, 4, 5)
  _write_idx(folder / f'{prefix}-images-idx3-ubyte{suffix}', images)
  labels_path = folder / f'{prefix}-labels-idx1-ubyte{suffix}'
  _write_idx(labels_path, np.array(labels))
  return images


def test_unknown_source_lists_the_known():
  with pytest.raises(UserError, match="got 'mnist'.*'digits'.*'idx'.*'tfds'"):
    sources.open_source('mnist', 'train')


def test_heavy_libraries_are_imported_only_when_asked_for():
  code = """
import sys
from softmoe.data.images import batches
sys.exit(any(m in sys.modules for m in
  ('sklearn', 'tensorflow_datasets', 'tensorflow')))
"""
  assert (
    subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
  )


def test_digits():
  train = sources.open_source('digits', 'train')
  test = sources.open_source('digits', 'test')
  assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
  example = train[0]
  assert example['image'].shape == (8, 8, 1)
  assert example['image'].dtype == np.uint8
  images = np.stack(
    [s[i]['image'] for s in (train, test) for i in range(len(s))]
  )
  assert (images.min(), images.max()) == (0, 255)
  counts = [38, 42, 41, 32, 45, 29, 35, 39, 27, 32]
  labels = np.asarray(test.labels)
  np.testing.assert_array_equal(np.bincount(labels), counts)


def test_digits_parts_make_up_the_whole():
  from sklearn import datasets

  train = sources.open_source('digits', 'train')
  test = sources.open_source('digits', 'test')
  ours = [s[i]['image'].tobytes() for s in (train, test) for i in range(len(s))]
  pixels = np.asarray(datasets.load_digits(return_X_y=True)[0])
  scaled = np.round(pixels / 16 * 255).astype(np.uint8)
  assert sorted(ours) == sorted(image.tobytes() for image in scaled)


def test_digits_takes_no_argument():
  with pytest.raises(UserError, match="'digits:/data'; 'digits', without"):
    sources.open_source('digits:/data', 'train')


def test_digits_unknown_split():
  with pytest.raises(UserError, match=r"got 'val'; .*\['test', 'train'\]"):
    sources.open_source('digits', 'val[:10]')


@pytest.mark.parametrize('suffix', ['', '.gz'])
@pytest.mark.parametrize(
  ('split', 'prefix'), [('train', 'train'), ('test', 't10k')]
)
def test_idx(tmp_path, suffix, split, prefix):
  images = _write_idx_folder(tmp_path, suffix, prefix)
  source = sources.open_source(f'idx:{tmp_path}', split)
  assert len(source) == 2
  np.testing.assert_array_equal(source[1]['image'][..., 0], images[1])
  assert [source[0]['label'], source[1]['label']] == [3, 1]


def test_a_folder_in_the_users_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'mnist').mkdir()
  _write_idx_folder(tmp_path / 'mnist')
  assert len(sources.open_source('idx:~/mnist', 'train')) == 2


def test_idx_missing_folder_and_unknown_split(tmp_path):
  with pytest.raises(
    UserError, match='a folder with train-images-idx3-ubyte.gz'
  ):
    sources.open_source(f'idx:{tmp_path}/none', 'train')
  with pytest.raises(UserError, match=r"\['test', 'train'\]"):
    sources.open_source(f'idx:{tmp_path}', 'validation')


def test_idx_corrupt_header(tmp_path):
  _write_idx_folder(tmp_path)
  path = tmp_path / 'train-images-idx3-ubyte'
  _write_idx(path, np.zeros((2, 4, 5)), magic=b'\0\0\x0d\x03')
  with pytest.raises(UserError, match=r'images-idx3-ubyte.*header is 00000d03'):
    sources.open_source(f'idx:{tmp_path}', 'train')


@pytest.mark.parametrize('keep', [0, 3, 10, 20])
def test_idx_truncated(tmp_path, keep):
  _write_idx_folder(tmp_path)
  path = tmp_path / 'train-images-idx3-ubyte'
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(UserError, match='an intact idx file'):
    sources.open_source(f'idx:{tmp_path}', 'train')


@pytest.mark.parametrize('content', [b'', b'not gzip', 'half'])
def test_idx_corrupt_gzip(tmp_path, content):
  _write_idx_folder(tmp_path, '.gz')
  path = tmp_path / 'train-images-idx3-ubyte.gz'
  half = path.read_bytes()[: path.stat().st_size // 2]
  path.write_bytes(half if content == 'half' else content)
  with pytest.raises(UserError, match='an intact idx file'):
    sources.open_source(f'idx:{tmp_path}', 'train')


def test_idx_counts_differ(tmp_path):
  _write_idx_folder(tmp_path, labels=(1, 2, 3))
  with pytest.raises(UserError, match=r'as many labels \(3\) as images \(2\)'):
    sources.open_source(f'idx:{tmp_path}', 'train')


@pytest.mark.parametrize('names', ['{}_images {}_labels', 'x_{} y_{}'])
@pytest.mark.parametrize('shape', [(4, 5), (4, 5, 3)])
def test_npz(tmp_path, names, shape):
  rng = np.random.default_rng(0)
  arrays = {}
  for split in ('train', 'test'):
    images, labels = names.format(split, split).split()
    arrays[images] = rng.integers(0, 256, (6, *shape), np.uint8)
    arrays[labels] = rng.integers(0, 3, (6, 1))
  path = tmp_path / 'data.npz'
  np.savez(path, allow_pickle=False, **arrays)
  source = sources.open_source(f'npz:{path}', 'test[2:]')
  images, labels = names.format('test', 'test').split()
  assert len(source) == 4
  np.testing.assert_array_equal(
    source[0]['image'], arrays[images][2].reshape(4, 5, -1)
  )
  assert source[0]['label'] == arrays[labels][2, 0]
  with pytest.raises(UserError, match=r"got 'val'; .*\['test', 'train'\]"):
    sources.open_source(f'npz:{path}', 'val')


@pytest.mark.parametrize(
  ('images', 'labels', 'expected'),
  [
    (np.zeros((2, 4, 4), np.float32), np.zeros(2, int), 'images as uint8'),
    (np.zeros((2, 4), np.uint8), np.zeros(2, int), 'images as uint8'),
    (np.zeros((2, 4, 4), np.uint8), np.zeros(3, int), 'labels as 2 integers'),
    (np.zeros((2, 4, 4), np.uint8), np.zeros(2), 'labels as 2 integers'),
    (np.zeros((2, 4, 4), np.uint8), np.zeros((2, 9), int), 'labels as 2'),
    (np.zeros((0, 4, 4), np.uint8), np.zeros(0, int), 'a slice with examples'),
    (np.array([None, {}]), np.zeros(2, int), 'without pickles'),
  ],
)
def test_npz_wrong_arrays(tmp_path, images, labels, expected):
  path = tmp_path / 'data.npz'
  np.savez(path, x_train=images, y_train=labels)
  with pytest.raises(UserError, match=expected):
    sources.open_source(f'npz:{path}', 'train')


def test_npz_missing_or_corrupt(tmp_path):
  with pytest.raises(UserError, match='No such file'):
    sources.open_source(f'npz:{tmp_path}/none.npz', 'train')
  np.save(tmp_path / 'one.npy', np.zeros(3))
  (tmp_path / 'text.npz').write_text('no archive')
  np.savez(tmp_path / 'cut.npz', x_train=np.zeros((9, 9, 9), np.uint8))
  whole = (tmp_path / 'cut.npz').read_bytes()
  (tmp_path / 'cut.npz').write_bytes(whole[: len(whole) // 2])
  for name in ('one.npy', 'text.npz', 'cut.npz'):
    with pytest.raises(UserError, match=f'{name}.*an intact .npz file'):
      sources.open_source(f'npz:{tmp_path}/{name}', 'train')


def test_fake():
  train = sources.open_source('fake:4x5x3,classes=7', 'train')
  test = sources.open_source('fake:4x5x3,classes=7', 'test')
  assert (len(train), len(test), train.num_classes) == (1024, 1024, 7)
  assert train[0]['image'].shape == (4, 5, 3)
  assert {train[i]['label'] for i in range(100)} == set(range(7))
  np.testing.assert_array_equal(train[3]['image'], train[3]['image'])
  assert (train[3]['image'] != train[4]['image']).any()
  assert (train[3]['image'] != test[3]['image']).any()
  assert sources.open_source('fake:4x5x1', 'train').num_classes == 10


@pytest.mark.parametrize(
  'shape', ['', '4x4', '4x4x2', '0x4x3', '4x4x3,class=2']
)
def test_fake_malformed(shape):
  with pytest.raises(UserError, match='a form such as'):
    sources.open_source(f'fake:{shape}', 'train')


def test_fake_unknown_split():
  with pytest.raises(UserError, match=r"\['test', 'train'\]"):
    sources.open_source('fake:4x4x3', 'val')
