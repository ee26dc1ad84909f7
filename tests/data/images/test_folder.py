import numpy as np
import pytest
from PIL import Image as pillow

from softmoe.data.images import sources
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
    assert set(np.asarray(source.labels)) == {0, 1, 2}


def test_a_corrupt_image_is_named(tmp_path):
  _save(tmp_path / 'a/broken.png', _grey(1))
  (tmp_path / 'a/broken.png').write_bytes(b'no image')
  source = sources.open_source(f'folder:{tmp_path}', 'train')
  expected = f'{tmp_path}/a/broken.png.*an intact JPEG or PNG'
  with pytest.raises(UserError, match=expected):
    source[0]


@pytest.mark.parametrize('name', ['', '/none', '/file/cat'])
def test_missing_folder(tmp_path, name):
  (tmp_path / 'file').write_text('no folder')
  argument = name and f'{tmp_path}{name}'
  expected = f"got '{argument}'; a folder that can be read"
  with pytest.raises(UserError, match=expected):
    sources.open_source(f'folder:{argument}', 'train')


def test_folder_without_images(tmp_path):
  (tmp_path / 'cat').mkdir()
  with pytest.raises(UserError, match='a folder for each class'):
    sources.open_source(f'folder:{tmp_path}', 'train')


def test_what_is_hidden_or_no_file_is_left_out(tmp_path):
  _save(tmp_path / 'train/cat/a.png', _grey(10))
  (tmp_path / 'train/cat/._a.png').write_bytes(b'of a Mac')
  (tmp_path / 'train/cat/b.png').mkdir()
  source = sources.open_source(f'folder:{tmp_path}', 'train')
  assert _examples(source) == [(10, 0)]


def test_a_class_whose_images_lie_deeper_is_named(tmp_path):
  _save(tmp_path / 'train/cat/a.png', _grey(10))
  _save(tmp_path / 'train/dog/more/b.png', _grey(20))
  expected = f"got '{tmp_path}/train/dog'; images in it, .* not in 'more'"
  with pytest.raises(UserError, match=expected):
    sources.open_source(f'folder:{tmp_path}', 'train')


def test_the_limit_of_pixels_is_that_of_the_config(tmp_path):
  _save(tmp_path / 'cat/a.png', _grey(10))
  source = sources.open_source(f'folder:{tmp_path}', 'train', max_pixels=23)
  with pytest.raises(UserError, match='4 x 6 pixels.*at most 23 pixels'):
    source[0]
