"""XMoE's language models, counted and by hand."""

import pytest

from softmoe.tables.cost import ladder, text


def test_experts_are_eight_times_the_dense_mlp_together():
  for row in ladder.ROWS[1:]:
    config = ladder.make_config(row)
    assert config.model.moe.blocks == (1, 3, 5, 7, 9, 11)
    assert row.experts * config.model.moe.expert_dim == 8 * 3072
    assert config.model.moe.k in (row.k, 1)  # XMoE's tokens decide


@pytest.mark.slow
def test_parameters_to_the_digit_and_the_cost_of_a_token():
  found = ladder.of_all()
  assert all(row['params_same_digits'] for row in found)
  for row in found[1:]:  # two products of width 768, in 6 blocks
    by_hand = 6 * row['k'] * 4 * 768 * row['hidden'] / 1e6
    assert row['mflop_experts'] == pytest.approx(by_hand, rel=0.01)
  dense, top1, *_ = found
  # Routers come on top: 8 logits of 768 products in 6 blocks.
  routers = 6 * 2 * 768 * 8 / 1e6
  assert top1['mflop'] - dense['mflop'] == pytest.approx(routers, rel=0.5)
  title, _, heads, _, *lines = text.section('xmoe', found).splitlines()
  assert 'XMoE' in title
  assert [line.count('|') for line in lines] == [heads.count('|')] * 8
