import dataclasses
import itertools
import pathlib

import numpy as np
import pytest
from PIL import Image as pillow

from softmoe.data.images import batches, sources
from softmoe.data.images import config as image_config
from softmoe.errors import UserError

_AUGMENTED = image_config.TransformConfig(
  crop='pad', padding=2, flip=True, randaugment_layers=2
)
_CONFIG = image_config.ImageDataConfig(
  source='fake:6x5x3',
  train_split='train[:50]',
  eval_split='test[:50]',
  image_size=(6, 5),
  channels=3,
  batch_size=16,
  eval_batch_size=16,
  train=_AUGMENTED,
  threads=2,
)


def _take(count, config=_CONFIG, **options):
  options = {'seed': 0, **options}
  return list(itertools.islice(batches.train_batches(config, **options), count))


def _assert_equal(actual, expected):
  for a, b in zip(actual, expected, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      assert a[name].dtype == b[name].dtype
      np.testing.assert_array_equal(a[name], b[name])


def _part(process, count, size=16):
  """Rows of one of `count` processes: every count-th."""
  return np.arange(process, size, count)


def _joined(parts, rows):
  """Puts the rows of several processes where they belong, step by step."""
  order = np.argsort(np.concatenate(rows))
  return [
    {n: np.concatenate([part[n] for part in step])[order] for n in step[0]}
    for step in zip(*parts, strict=True)
  ]


def _replace(**fields):
  return dataclasses.replace(_CONFIG, **fields)


def test_shapes_and_types():
  (batch,) = _take(1)
  assert batch['image'].shape == (16, 6, 5, 3)
  assert batch['image'].dtype == np.uint8
  assert batch['label'].shape == (16,)
  assert batch['label'].dtype == np.int32


def test_augmentation_does_not_depend_on_who_reads_which_rows():
  rows = [_part(i, 2) for i in range(2)]
  parts = [_take(4, rows=each) for each in rows]  # 64 rows: over an epoch of 50
  _assert_equal(_joined(parts, rows), _take(4))


def test_resuming_continues_the_same_stream():
  _assert_equal(_take(2, start_step=3), _take(5)[3:])


def test_seeds_differ():
  first, second = _take(1, seed=1)[0], _take(1, seed=2)[0]
  assert (first['label'] != second['label']).any()


def _plain(**fields):
  """A config whose images tell which example they are."""
  return _replace(train=image_config.TransformConfig(), **fields)


def _indices(config, count):
  """Returns which examples of the source `count` batches have, in order."""
  source = sources.open_source(config.source, config.train_split)
  keys = {source[i]['image'].tobytes(): i for i in range(len(source))}
  images = np.concatenate([b['image'] for b in _take(count, config)])
  return [keys[image.tobytes()] for image in images]


def test_labels_stay_with_their_images():
  config = _plain()
  source = sources.open_source(config.source, config.train_split)
  labels = [source[i]['label'] for i in _indices(config, 5)]
  actual = np.concatenate([b['label'] for b in _take(5, config)])
  np.testing.assert_array_equal(actual, labels)


def test_an_example_is_augmented_anew_in_each_epoch():
  config = _replace(train_split='train[:1]', batch_size=8)
  (batch,) = _take(1, config)
  assert len({image.tobytes() for image in batch['image']}) > 4


def _eval(config=_CONFIG, split='test[:50]', **options):
  return list(batches.eval_batches(config, split, **options))


def test_eval_gives_every_example_once_in_order():
  batch_list = _eval()
  whole = {n: np.concatenate([b[n] for b in batch_list]) for n in batch_list[0]}
  source = sources.open_source(_CONFIG.source, 'test[:50]')
  images = np.stack([source[i]['image'] for i in range(50)])
  assert (whole['image'].dtype, whole['label'].dtype) == (np.uint8, np.int32)
  np.testing.assert_array_equal(whole['image'][:50], images)
  np.testing.assert_array_equal(
    whole['label'][:50], [source[i]['label'] for i in range(50)]
  )
  np.testing.assert_array_equal(whole['mask'], [1] * 50 + [0] * 14)
  assert not whole['image'][50:].any()
  assert not whole['label'][50:].any()


def test_eval_process_with_padding_alone():
  (batch,) = _eval(split='test[:3]', rows=np.arange(8, 16))
  assert batch['image'].shape == (8, 6, 5, 3)
  assert batch['image'].dtype == np.uint8
  assert not batch['mask'].any()


class _Numbered:
  """Black images, each with its index as the label."""

  num_classes = None
  labels = None

  def __len__(self):
    return 50

  def __getitem__(self, index):
    return {'image': np.zeros((6, 5, 3), np.uint8), 'label': index}


@pytest.mark.parametrize('threads', [0, 2])
def test_labels_out_of_range(monkeypatch, threads):
  monkeypatch.setattr(sources, 'open_source', lambda *_: _Numbered())
  config = _plain(num_classes=49, threads=threads)
  expected = 'label of example 49: got 49; .* 0 to 48'
  with pytest.raises(UserError, match=expected):
    _take(4, config)
  with pytest.raises(UserError, match=expected):
    _eval(config)


def test_too_few_classes():
  config = _replace(num_classes=9)
  with pytest.raises(UserError, match='num_classes: got 9; at least 10'):
    batches.train_batches(config, seed=0)
  with pytest.raises(UserError, match='num_classes: got 9; at least 10'):
    batches.eval_batches(config, 'test')


@pytest.mark.parametrize('threads', [0, 2])
def test_a_corrupt_image_is_named_from_within_a_thread(
  tmp_path: pathlib.Path, threads
):
  for name in ('a/good.png', 'b/bad.png'):
    (tmp_path / name).parent.mkdir()
    pillow.new('RGB', (5, 6)).save(tmp_path / name)
  (tmp_path / 'b/bad.png').write_bytes(b'')
  config = _replace(
    source=f'folder:{tmp_path}', train_split='train', threads=threads
  )
  with pytest.raises(UserError, match='bad.png.*an intact JPEG or PNG image'):
    _take(1, config)
  with pytest.raises(UserError, match='bad.png.*an intact JPEG or PNG image'):
    _eval(config, 'train')
