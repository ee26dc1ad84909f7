"""Translation of six languages into English, with MoE layers in the encoder.

Yang et al. 2024, https://arxiv.org/abs/2403.18926. Equal parameters and steps.
"""

from softmoe.tables import suite

MODELS = {
  'Dense': 'translate:dense_cpu',
  'Top-1': 'translate:top1_cpu',
  'Top-2, small': 'translate:topk_cpu',
  'XMoE': 'translate:xmoe_cpu',
}


def get_suite() -> suite.Suite:
  """Returns 8 runs."""
  return suite.Suite(
    title='LibreOffice help in six languages into English',
    baseline='Dense',
    metric='test/bleu',
    splits=('val', 'test'),
    runs=suite.product(MODELS, range(2), overrides=suite.ONE_CHECKPOINT),
  )
