"""Language models with every causal router: XMoE's comparison, on two cores.

Yang et al. 2024, https://arxiv.org/abs/2403.18926. Equal parameters and steps.
"""

from softmoe.tables import suite

MODELS = {
  'Dense': 'lm:dense_cpu',
  'Top-1': 'lm:top1_cpu',
  'Top-8, small': 'lm:topk_cpu',
  'Expert Threshold': 'lm:expert_threshold_cpu',
  'ReMoE': 'lm:relu_cpu',
  'Mixture of Tokens': 'lm:mot_cpu',
  'SegmentSoft': 'lm:segment_soft_cpu',
}
XMOE = (0.5, 0.9)  # thresholds of the training
# Those of the evaluation; at every one the quality and the experts wanted.
SWEEP = {
  'softmoe.tables.thresholds.evaluate:evaluate': {
    'thresholds': (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    'split': 'test',
  }
}
# Experts with room for as much as a dense MLP computes, and what is more is
# dropped: of XMoE, whose factor knows of no k, for 8 of 64 experts.
CAPACITY = {
  'softmoe.tables.capacity:evaluate': {
    'factors': {'tokens_choice': 1.0, 'threshold': 8.0},
    'split': 'test',
    'metrics': ('bits_per_byte', 'moe/wanted', 'moe/granted'),
  }
}


def get_suite() -> suite.Suite:
  """Returns 27 runs."""
  thresholds = [({'t': t}, {'model.moe.threshold': t}) for t in XMOE]
  common = suite.ONE_CHECKPOINT | {'checkpoint.best_metric': 'loss'}
  return suite.Suite(
    title='Language models on English from Debian packages',
    baseline='Dense',
    metric='test/bits_per_byte',
    splits=('val', 'test'),
    evaluators=SWEEP | CAPACITY,
    runs=(
      *suite.product(MODELS, range(3), overrides=common),
      *suite.product({'XMoE': 'lm:xmoe_cpu'}, range(3), thresholds, common),
    ),
  )
