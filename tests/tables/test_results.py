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


def test_what_one_percent_stands_for(tmp_path):
  split = dict(split='test', examples=360)
  soft = finished(tmp_path / 'soft', **split)
  vit = finished(tmp_path / 'vit', **split)
  whole = finished(tmp_path / 'fashion', split='test[:50%]', examples=5000)
  assert results.table([soft, vit]).splitlines()[4:] == [
    '',
    "1 % is 3.6 of the 360 images of 'test'.",
  ]
  assert results.table([soft, whole]).splitlines()[4:] == [
    '',
    "1 % is 3.6 of the 360 images of 'test'.",
    "1 % is 50 of the 5,000 images of 'test[:50%]'.",
  ]


def test_a_run_that_is_not_finished_is_named(tmp_path):
  with pytest.raises(UserError, match=f'WORKDIR: got {str(tmp_path)!r}'):
    results.table([str(tmp_path)])


def test_another_task_has_its_own_metric_and_unit(tmp_path):
  other = dict(metric='perplexity', unit='token', perplexity=23.456)
  other |= dict(gflop_per_token=0.5, train={'tokens_per_second': 1e6})
  lm = finished(tmp_path / 'lm', **other)
  assert results.table([lm]).splitlines() == [
    '| Model    | Perplexity | Parameters | GFLOP/token |  Tokens/s |',
    '| -------- | ---------: | ---------: | ----------: | --------: |',
    '| Soft MoE |      23.46 |    401,100 |       0.500 | 1,000,000 |',
  ]
  soft = finished(tmp_path / 'soft')
  with pytest.raises(UserError, match='a run of accuracy and images'):
    results.table([soft, lm])


@pytest.mark.parametrize(
  'content', ['{}', '{"name": "x"}', json.dumps(RESULT | {'train': 3})]
)
def test_a_result_of_something_else_is_named(tmp_path, content):
  (tmp_path / 'result.json').write_text(content)
  with pytest.raises(UserError, match='result.json: got .*Error'):
    results.table([str(tmp_path)])
