"""Sparse upcycling of the ViT that the suite `main` left, on glyphs.

Komatsuzaki et al., 2023, https://arxiv.org/abs/2212.05055, and routers that the
paper has not. Each mixture starts from the dense run, and from nothing, and is
trained for 10 % and 50 % of the steps of that run; 0 % is one step at a rate of
0, so that it is evaluated as it starts. What starts from the dense run is
trained at a tenth of its rate, since at the whole rate it first loses what it
had (docs/finetuning.md). The ViT is trained on for as many FLOPs as the dearest
mixture has. What starts from nothing has the warm-up of the dense run, or half of
its steps: at this rate Soft MoE learns nothing for a thousand steps after one of
200. It needs the workdirs of `main`, under `runs/main`.
"""

from softmoe.tables import suite

STEPS = 4000  # of the dense run
WARMUP = 400  # of it
RATE = 1.6e-3  # of what starts from it, a tenth of its own
PERCENTS = (0, 10, 50)
# Steps of the ViT for one of Tokens Choice, K=2, and no less: by its FLOPs.
DENSE_STEPS = 1.31
# Each with its changes, and `upcycle.scale`: 1 over what the gates of a token
# sum to, after drops, on normal tokens; Soft MoE's sum to 1, and those that are
# normalised.
MODELS = {
  'ViT': ('vit', {}, 1.0),
  'Soft MoE': ('soft', {}, 1.0),
  'Tokens Choice, K=2': ('tokens_k2', {'model.moe.normalize': True}, 1.0),
  'Experts Choice': ('experts', {}, 4.0),
  'XMoE': ('xmoe', {}, 6.0),
}


def get_suite() -> suite.Suite:
  """Returns 69 runs."""
  return suite.Suite(
    title='Sparse upcycling on glyphs, width 32',
    baseline='ViT',
    metric='test/accuracy',
    splits=('val', 'test', 'faces'),
    runs=tuple(
      run
      for seed in range(3)
      for model in MODELS
      for percent in PERCENTS
      for run in _runs(model, percent, seed)
    ),
  )


def _runs(model: str, percent: int, seed: int) -> list[suite.Run]:
  argument, changes, scale = MODELS[model]
  steps = round(STEPS * percent / 100)
  if argument == 'vit':
    steps = round(steps * DENSE_STEPS)
  dense = {'init': f'runs/main/vit-width32-seed{seed}'} | _schedule(steps)
  starts = {'dense': dense}
  if argument != 'vit':
    dense |= {'upcycle.enabled': True, 'upcycle.scale': scale}
    if percent:
      warmup = min(WARMUP, steps // 2)
      starts['scratch'] = {
        'steps': steps,
        'optimizer.schedule.warmup': warmup,
      }
  return [
    suite.Run(
      model,
      f'glyphs:{argument}',
      seed,
      {'from': name, 'percent': percent},
      suite.ONE_CHECKPOINT | changes | start,
    )
    for name, start in starts.items()
  ]


def _schedule(steps: int) -> dict[str, float]:
  """Returns how what starts from the dense run is trained."""
  return {
    'steps': max(steps, 1),
    'optimizer.learning_rate': RATE if steps else 0.0,
    'optimizer.schedule.warmup': steps // 10,
  }
