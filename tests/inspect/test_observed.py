"""What is read of a router, and of a layer, itself."""

import numpy as np
import pytest
from flax import nnx

import softmoe
from softmoe.inspect import observed


@pytest.mark.parametrize('balance_by', ['sign', 'quantile'])
def test_what_a_rule_moves_is_no_slot(balance_by):
  router = softmoe.BiasBalanced(
    6, 4, k=2, balance_by=balance_by, rngs=nnx.Rngs(0)
  )
  found = observed.slots(router, 4)
  np.testing.assert_array_equal(found, router.kernel[...])


def test_slots_of_all_experts_are_columns():
  router = softmoe.SoftRouter(6, 4, 2, rngs=nnx.Rngs(0))
  found = observed.slots(router, 8)
  np.testing.assert_array_equal(found, router.phi[...].reshape(6, 8))


def test_null_experts_are_left_out():
  router = softmoe.TokensChoice(6, 4, k=2, num_null=2, rngs=nnx.Rngs(0))
  assert router.kernel.shape == (6, 6)
  found = observed.slots(router, 4)
  np.testing.assert_array_equal(found, router.kernel[:, :4])


def test_a_piece_is_what_shares_slots():
  rngs = nnx.Rngs(0)
  mlp = lambda rngs: softmoe.Mlp(6, 5, rngs=rngs)
  experts = softmoe.Experts(mlp, 4, rngs=rngs)
  make = lambda router, **options: softmoe.MoE(router, experts, **options)
  soft = softmoe.SoftRouter(6, 4, rngs=rngs)
  segments = softmoe.SegmentSoft(6, 4, segment=3, rngs=rngs)
  mixture = softmoe.MixtureOfTokens(6, 4, group_size=2, rngs=rngs)
  assert observed.piece(make(soft), 7) == 7
  assert observed.piece(make(segments), 7) == 3
  assert observed.piece(make(mixture), 7) is None
  assert observed.piece(make(soft, group_size=2), 7) is None
