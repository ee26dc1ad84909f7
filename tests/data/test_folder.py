import numpy as np
import pytest
from PIL import Image as pillow

from softmoe.data import sources
from softmoe.errors import UserError


def _save(path, image, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  pillow.fromarray(image).save(path, **options)


def _grey(value, size=(4, 6)):
  return np.full(size, value, np.uint8)


def _examples(source):
  """Returns the first pixel and the label of every example, sorted."""
  read = [source[i] for i in range(len(source))]
  return sorted((int(e['image'][0, 0, 0]), e['label']) for e in read)


def test_class_folders_are_one_split(tmp_path):
  _save(tmp_path / 'dog/a.png', _grey(10))
  _save(tmp_path / 'cat/b.png', _grey(20))
  _save(tmp_path / 'cat/c.PNG', _grey(30))
  (tmp_path / 'cat/notes.txt').write_text('no image')
  (tmp_path / '.cache').mkdir()
  source = sources.open_source(f'folder:{tmp_path}', 'train')
  assert source.num_classes == 2
  assert _examples(source) == [(10, 1), (20, 0), (30, 0)]
  with pytest.raises(
    UserError, match=r"got 'test'; the source has \['train'\]"
  ):
    sources.open_source(f'folder:{tmp_path}', 'test')


def test_split_folders_share_their_classes(tmp_path):
  for split, name, value in (
    ('train', 'ant', 1),
    ('train', 'bee', 2),
    ('val', 'bee', 3),
    ('val', 'cow', 4),
  ):
    _save(tmp_path / split / name / 'x.png', _grey(value))
  train = sources.open_source(f'folder:{tmp_path}', 'train')
  val = sources.open_source(f'folder:{tmp_path}', 'val')
  assert (train.num_classes, val.num_classes) == (3, 3)
  assert _examples(train) == [(1, 0), (2, 1)]
  assert _examples(val) == [(3, 1), (4, 2)]
  with pytest.raises(UserError, match=r"\['train', 'val'\]"):
    sources.open_source(f'folder:{tmp_path}', 'test')


def test_slices_hold_images_of_every_class(tmp_path):
  for label in range(3):
    for i in range(30):
      _save(tmp_path / f'{label}/{i:02}.png', _grey(label, (1, 1)))
  for split in ('train[:80%]', 'train[80%:]'):
    source = sources.open_source(f'folder:{tmp_path}', split)
    assert set(source.labels) == {0, 1, 2}


@pytest.mark.parametrize(
  ('mode', 'channels'),
  [
    ('L', 1),
    ('1', 1),
    ('LA', 1),
    ('RGB', 3),
    ('RGBA', 3),
    ('P', 3),
    ('CMYK', 3),
  ],
)
def test_modes(tmp_path, mode, channels):
  (tmp_path / 'a').mkdir()
  suffix = 'jpg' if mode == 'CMYK' else 'png'
  pillow.new(mode, (6, 4)).save(tmp_path / f'a/x.{suffix}')
  image = sources.open_source(f'folder:{tmp_path}', 'train')[0]['image']
  assert (image.shape, image.dtype) == ((4, 6, channels), np.uint8)


def test_jpeg_pixels(tmp_path):
  image = np.full((16, 16, 3), (200, 100, 50), np.uint8)
  _save(tmp_path / 'a/x.jpeg', image, quality=95)
  read = sources.open_source(f'folder:{tmp_path}', 'train')[0]['image']
  np.testing.assert_allclose(read.astype(int), image, atol=2)


def test_deep_images_are_refused(tmp_path):
  _save(tmp_path / 'a/x.png', np.zeros((4, 4), np.uint16))
  source = sources.open_source(f'folder:{tmp_path}', 'train')
  with pytest.raises(UserError, match='not 8 bits a channel'):
    source[0]


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
@pytest.mark.parametrize('keep', [0, 10, 300])
def test_corrupt_image_is_named(tmp_path, suffix, keep):
  noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  path = tmp_path / f'a/broken.{suffix}'
  _save(path, noise)
  path.write_bytes(path.read_bytes()[:keep])
  source = sources.open_source(f'folder:{tmp_path}', 'train')
  with pytest.raises(
    UserError, match=f'broken.{suffix}.*an intact JPEG or PNG'
  ):
    source[0]


def test_missing_or_empty_folder(tmp_path):
  with pytest.raises(UserError, match='an existing folder'):
    sources.open_source(f'folder:{tmp_path}/none', 'train')
  (tmp_path / 'cat').mkdir()
  with pytest.raises(UserError, match='a folder for each class'):
    sources.open_source(f'folder:{tmp_path}', 'train')
