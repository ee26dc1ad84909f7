import dataclasses
import itertools
import pathlib
import threading
import time

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
  assert batch['image'].dtype == np.float32
  assert batch['label'].shape == (16,)
  assert batch['label'].dtype == np.int32
  assert -1 <= batch['image'].min() < batch['image'].max() <= 1


@pytest.mark.parametrize(
  'rows',
  [
    [np.arange(8), np.arange(8, 16)],
    [np.arange(8, 16), np.arange(8)],
    [_part(i, 4) for i in range(4)],
    [np.array([3]), np.delete(np.arange(16), 3)],
  ],
)
def test_global_batch_does_not_depend_on_who_reads_which_rows(rows):
  whole = _take(8)  # 128 rows: more than two epochs of 50
  parts = [_take(8, rows=each) for each in rows]
  assert parts[0][0]['label'].shape == (len(rows[0]),)
  _assert_equal(_joined(parts, rows), whole)


@pytest.mark.parametrize('start', [1, 3, 6])
@pytest.mark.parametrize('rows', [None, _part(1, 2)])
def test_resuming_continues_the_same_stream(start, rows):
  resumed = _take(8 - start, start_step=start, rows=rows)
  _assert_equal(resumed, _take(8, rows=rows)[start:])


def test_starting_far_away_is_immediate():
  (batch,) = _take(1, start_step=10**9)
  assert batch['image'].shape == (16, 6, 5, 3)


@pytest.mark.parametrize('threads', [0, 1, 4])
def test_threads_change_nothing(threads):
  _assert_equal(_take(4, _replace(threads=threads)), _take(4))


def test_seeds_differ_and_repeat():
  _assert_equal(_take(2, seed=1), _take(2, seed=1))
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
  pixels = np.round((images + 1) * 127.5).astype(np.uint8)
  return [keys[image.tobytes()] for image in pixels]


def test_each_epoch_has_every_example_once_in_a_new_order():
  indices = np.array(_indices(_plain(batch_size=10), 15)).reshape(3, 50)
  for epoch in indices:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(50))
  assert len({epoch.tobytes() for epoch in indices}) == 3


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


def test_batch_may_exceed_the_epoch_and_be_one():
  (batch,) = _take(1, _replace(train_split='train[:3]'))
  assert batch['label'].shape == (16,)
  (batch,) = _take(1, _replace(batch_size=1))
  assert batch['label'].shape == (1,)


def test_batch_size_must_be_positive():
  with pytest.raises(UserError, match='config.data.batch_size: got 0'):
    batches.train_batches(_replace(batch_size=0), seed=0)
  with pytest.raises(UserError, match='config.data.eval_batch_size: got 0'):
    batches.eval_batches(_replace(eval_batch_size=0), 'test')


def test_wrong_seed_and_threads():
  with pytest.raises(UserError, match='config.seed'):
    batches.train_batches(_CONFIG, seed=-1)
  with pytest.raises(UserError, match='config.data.threads'):
    batches.train_batches(_replace(threads=-1), seed=0)


def _eval(config=_CONFIG, split='test[:50]', **options):
  return list(batches.eval_batches(config, split, **options))


@pytest.mark.parametrize('size', [16, 50, 64, 10])
@pytest.mark.parametrize('process_count', [1, 2])
def test_eval_gives_every_example_once_in_order(size, process_count):
  config = _replace(eval_batch_size=size)
  rows = [_part(i, process_count, size) for i in range(process_count)]
  parts = [_eval(config, rows=each) for each in rows]
  steps = -(-50 // size)
  assert [len(part) for part in parts] == [steps] * process_count
  joined = _joined(parts, rows)
  mask = np.concatenate([b['mask'] for b in joined])
  np.testing.assert_array_equal(mask, [1] * 50 + [0] * (steps * size - 50))
  assert mask.dtype == np.float32
  source = sources.open_source(config.source, 'test[:50]')
  images = np.concatenate([b['image'] for b in joined])
  labels = np.concatenate([b['label'] for b in joined])
  expected = np.stack([source[i]['image'] for i in range(50)])
  np.testing.assert_allclose(images[:50], expected / 127.5 - 1, atol=1e-6)
  np.testing.assert_array_equal(
    labels[:50], [source[i]['label'] for i in range(50)]
  )
  assert not images[50:].any()
  assert not labels[50:].any()


def test_eval_process_with_padding_alone():
  config = _replace(eval_batch_size=16)
  (batch,) = _eval(config, 'test[:3]', rows=np.arange(8, 16))
  assert batch['image'].shape == (8, 6, 5, 3)
  assert not batch['mask'].any()


@dataclasses.dataclass
class _Recorder:
  """Black images; reading one takes 10 ms and has its index as the label."""

  num_classes: int | None = None
  labels: None = None
  read: int = 0
  active: int = 0
  most_active: int = 0

  def __post_init__(self):
    self.lock = threading.Lock()

  def __len__(self):
    return 50

  def __getitem__(self, index):
    with self.lock:
      self.read += 1
      self.active += 1
      self.most_active = max(self.active, self.most_active)
    time.sleep(0.01)
    with self.lock:
      self.active -= 1
    return {'image': np.zeros((6, 5, 3), np.uint8), 'label': index}


@pytest.fixture
def recorder(monkeypatch):
  source = _Recorder()
  monkeypatch.setattr(sources, 'open_source', lambda name, split: source)
  return source


@pytest.mark.parametrize('threads', [0, 1, 3])
def test_threads_work_at_once_and_no_further_ahead(recorder, threads):
  config = _plain(batch_size=2, threads=threads, num_classes=50)
  iterator = batches.train_batches(config, seed=0)
  for _ in range(3):
    next(iterator)
  ahead = 2 * (3 + threads)
  deadline = time.monotonic() + 10
  while recorder.read < ahead and time.monotonic() < deadline:
    time.sleep(0.01)
  time.sleep(0.05)
  assert recorder.read == ahead
  assert recorder.most_active == max(threads, 1)


@pytest.mark.parametrize('threads', [0, 2])
def test_labels_out_of_range(recorder, threads):
  del recorder
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
