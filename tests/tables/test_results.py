"""The result table, from what runs leave behind."""

import json

import pytest

from softmoe.errors import UserError
from softmoe.tables import results

RESULT = {
  'name': 'Soft MoE',
  'accuracy': 0.98333,
  'params': 401100,
  'gflop_per_image': 0.0016789,
  'train': {'images_per_second': 6036.7},
}


def finished(path, **changes):
  path.mkdir()
  (path / 'result.json').write_text(json.dumps(RESULT | changes))
  return str(path)


def test_one_row_a_run(tmp_path):
  soft = finished(tmp_path / 'soft')
  vit = finished(tmp_path / 'vit', name='ViT', gflop_per_image=9.2, train={})
  assert results.table([soft, vit]).splitlines() == [
    '| Model    | Accuracy | Parameters | GFLOP/image | Images/s |',
    '| -------- | -------: | ---------: | ----------: | -------: |',
    '| Soft MoE |   98.33% |    401,100 |     0.00168 |    6,037 |',
    '| ViT      |   98.33% |    401,100 |        9.20 |  unknown |',
  ]


def test_a_run_that_is_not_finished_is_named(tmp_path):
  with pytest.raises(UserError, match=f'WORKDIR: got {str(tmp_path)!r}'):
    results.table([str(tmp_path)])
