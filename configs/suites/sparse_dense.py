"""Dense language models made sparse after the training, on two cores.

Yang et al. 2024, https://arxiv.org/abs/2403.18926: trained as small experts
that are all on, and evaluated at lower thresholds. Beside them the dense model,
and smaller ones, which say what its cost could buy. docs/sparse_dense.md has
the commands that follow.
"""

from softmoe.tables import suite

EXPERTS = (8, 16)  # of 512 units together, as many as the dense MLP has
UNITS = (128, 256)  # of the smaller dense MLPs


def get_suite() -> suite.Suite:
  """Returns 10 runs."""
  experts = [({'experts': n}, {'model.moe.num_experts': n}) for n in EXPERTS]
  units = [({'units': n}, {'model.mlp_dim': n}) for n in UNITS]
  models = (
    ({'Dense': 'lm:dense_cpu'}, [({}, {})]),
    ({'Every expert on': 'lm:all_on_cpu'}, experts),
    ({'Smaller dense': 'lm:dense_cpu'}, units),
  )
  common = suite.ONE_CHECKPOINT | {'checkpoint.best_metric': 'loss'}
  return suite.Suite(
    title='Dense language models made sparse, on English from Debian packages',
    baseline='Dense',
    metric='test/bits_per_byte',
    splits=('val', 'test'),
    runs=tuple(
      run
      for seed in range(2)
      for model, points in models
      for run in suite.product(model, [seed], points, common)
    ),
  )
