"""Dense language models made sparse after the training, on two cores.

Yang et al. 2024, https://arxiv.org/abs/2403.18926: trained as small experts, all
of them on, and evaluated at lower thresholds; beside dense models, which also
say what their smaller ones reach at the same cost. docs/sparse_dense.md has the
commands.
"""

from softmoe.tables import suite

UNITS = (64, 128, 256, 512)  # of a dense MLP: from an eighth on
EXPERTS = (8, 16, 32)  # of as many units together as the largest


def get_suite() -> suite.Suite:
  """Returns 14 runs."""
  dense = [({'units': n}, {'model.mlp_dim': n}) for n in UNITS]
  sparse = [({'experts': n}, {'model.moe.num_experts': n}) for n in EXPERTS]
  common = suite.ONE_CHECKPOINT | {'checkpoint.best_metric': 'loss'}
  return suite.Suite(
    title='Dense language models made sparse, on English from Debian packages',
    metric='test/bits_per_byte',
    splits=('val', 'test'),
    runs=(
      *suite.product({'Dense': 'lm:dense_cpu'}, range(2), dense, common),
      *suite.product(
        {'Every expert on': 'lm:all_on_cpu'}, range(2), sparse, common
      ),
    ),
  )
