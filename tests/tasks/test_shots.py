"""Which images a few-shot evaluation reads."""

import numpy as np
import pytest
from PIL import Image as pillow

from softmoe.data.images import sources
from softmoe.errors import UserError
from softmoe.tasks import shots

CONFIG = dict(source='digits', shots=(1, 5))


def draw(**fields):
  return shots.draw(shots.FewshotConfig(**CONFIG | fields))


def labels_of(split):
  return np.asarray(sources.open_source('digits', split).labels)


def test_shots_are_of_their_class_and_differ_between_seeds():
  drawn = draw()
  assert drawn.ranked.shape == (3, 10, 5)
  own = np.arange(10)[None, :, None]
  assert (drawn.pool.labels[drawn.ranked] == own).all()
  true = labels_of('train')[drawn.pool.indices]
  np.testing.assert_array_equal(true, drawn.pool.labels)
  for each in drawn.ranked.reshape(-1, 5):
    assert len(set(each)) == 5
  assert not np.array_equal(drawn.ranked[0], drawn.ranked[1])


def test_what_chooses_l2_is_never_a_shot():
  drawn = draw()
  assert len(drawn.held_out) == 10 * shots.HELD_OUT
  assert not set(drawn.held_out) & set(drawn.ranked.ravel())
  counts = np.bincount(drawn.pool.labels[drawn.held_out])
  assert counts.tolist() == [shots.HELD_OUT] * 10
  other = draw(val_split='test[:50]')
  assert len(other.held_out) == 0 and len(other.val.labels) == 50


def test_a_draw_follows_from_the_config_alone():
  drawn, again = draw(), draw()
  np.testing.assert_array_equal(drawn.pool.indices, again.pool.indices)
  np.testing.assert_array_equal(drawn.ranked, again.ranked)
  more = draw(seeds=5, shots=(5,))  # further seeds leave the first as they are
  chosen = lambda d: d.pool.indices[d.ranked[:3]]
  np.testing.assert_array_equal(chosen(more), chosen(drawn))


def test_more_shots_hold_the_fewer():
  fewer, more = draw(shots=(2,)), draw(shots=(4,))
  chosen = [d.pool.indices[d.ranked] for d in (fewer, more)]
  np.testing.assert_array_equal(chosen[0], chosen[1][..., :2])


def test_some_classes_alone():
  drawn = draw(classes=3)
  assert drawn.ranked.shape == (3, 3, 5)
  found = np.unique(labels_of('test')[drawn.test.indices])
  assert len(found) == 3
  np.testing.assert_array_equal(
    found, np.unique(labels_of('train')[drawn.pool.indices])
  )
  assert set(drawn.test.labels) == {0, 1, 2}


def test_images_are_as_large_as_those_of_the_training_at_most(tmp_path):
  for name in ('train/a/0', 'train/a/1', 'train/b/0', 'train/b/1', 'test/a/0'):
    path = tmp_path / f'{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(np.zeros((4, 6), np.uint8)).save(path)
  config = shots.FewshotConfig(source=f'folder:{tmp_path}', shots=(1,), seeds=1)
  for images in (lambda drawn: drawn.pool, lambda drawn: drawn.test):
    assert images(shots.draw(config, 24)).source[0]['image'].shape == (4, 6, 1)
    with pytest.raises(UserError, match='at most 23 pixels'):
      _ = images(shots.draw(config, 23)).source[0]


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (dict(shots=()), 'config.fewshot.shots: got (); one number or more'),
    (dict(shots=(0,)), 'config.fewshot.shots[0]: got 0; at least 1'),
    (dict(seeds=0), 'config.fewshot.seeds: got 0; at least 1'),
    (dict(classes=-1), 'config.fewshot.classes: got -1'),
    (dict(classes=11), 'config.fewshot.classes: got 11; at most 10'),
    (dict(shots=(500,)), 'config.fewshot.shots: got 500; less: class 0 has'),
    (dict(test_split='valid'), "config.fewshot.test_split: got 'valid'"),
    (dict(train_split='train[:12]'), "_split: got 'test'; classes of"),
    (dict(source='digit'), "config.data.source: got 'digit'"),
  ],
)
def test_what_does_not_fit_is_named(fields, words):
  if fields.get('train_split'):  # one image of each class, and not of all
    fields |= dict(shots=(1,), val_split='test')
  with pytest.raises(UserError) as error:
    draw(**fields)
  assert words in str(error.value)
