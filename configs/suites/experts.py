"""How many experts, and how many slots each: Figure 6 of the paper, on glyphs.

Puigcerver et al. 2023, https://arxiv.org/abs/2308.00951. 64 tokens an image.
"""

from softmoe.tables import suite

# Half the steps of the other suites: an image has four times their tokens.
SMALL = suite.ONE_CHECKPOINT | {'model.patch_size': (4, 4), 'steps': 2000}
# (experts, slots of each): 64 slots, one a token; 256, four a token; then more
# slots for the same experts.
SIZES = (
  *((4, 16), (8, 8), (16, 4), (32, 2), (64, 1)),
  *((16, 16), (64, 4), (256, 1)),
  *((16, 1), (16, 2), (16, 8)),
)


def get_suite() -> suite.Suite:
  """Returns 12 runs, one seed: speed and quality."""
  sizes = [
    (
      {'experts': experts, 'slots': slots},
      {'model.moe.num_experts': experts, 'model.moe.slots_per_expert': slots},
    )
    for experts, slots in SIZES
  ]
  return suite.Suite(
    title='Experts and slots on glyphs, width 32, patch 4',
    baseline='ViT',
    metric='test/accuracy',
    splits=('val', 'test', 'faces'),
    runs=(
      *suite.product({'ViT': 'glyphs:vit'}, [0], overrides=SMALL),
      *suite.product({'Soft MoE': 'glyphs:soft'}, [0], sizes, SMALL),
    ),
  )
