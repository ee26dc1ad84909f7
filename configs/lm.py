r"""Language models with MoE layers: XMoE's setting, and one for two cores.

Yang et al. 2024, https://arxiv.org/abs/2403.18926, and the routers that it has
to be compared with (docs/routers.md). All mixtures have as many parameters in
experts (segment_soft has half an MLP for every token beside them), and all but
XMoE, whose tokens decide, are set to compute as much as the dense MLP. Nothing
is dropped, so that no token sees later ones. `all_on` is another: the paper's
dense model, every MLP of which is small experts that are all on
(docs/sparse_dense.md). ARGUMENT is one of ARGUMENTS, for instance xmoe (the
paper's size) or xmoe_cpu.

  python -m softmoe.data.text.train_tokenizer bpe jsonl:data/english \
    data/english.json --vocab_size=2048
  python train.py --config=configs/lm.py:xmoe_cpu --workdir=DIR

  python -m softmoe.data.text.tokenize SOURCE bpe:FILE.json data/lm.bin
  python train.py --config=configs/lm.py:ARGUMENT --workdir=DIR \
    --config.data.source=tokens:data/lm.bin \
    --config.data.tokenizer=bpe:FILE.json

--config.model.moe.num_experts=16 makes the experts as much wider as they are
fewer: 8, 16, 32 and 64 experts are the ladder of the paper.
"""

import ml_collections

from softmoe import config as config_lib
from softmoe.tasks import language

SWITCH = dict(losses=(('switch', 0.01),))
MOE = {
  'dense': {},
  'top1': dict(router='tokens_choice', num_experts=8, k=1) | SWITCH,
  'hash': dict(router='hash', num_experts=8),
  'topk': dict(router='tokens_choice', num_experts=64, k=8) | SWITCH,
  'xmoe': dict(router='threshold', num_experts=64, threshold=0.9, balance=0.01),
  'expert_threshold': dict(router='expert_threshold', num_experts=64, k=8),
  'relu': dict(router='relu', num_experts=64, k=8),
  'all_on': dict(
    router='threshold', num_experts=8, router_options=(('all_experts', True),)
  ),
  # A slot of each of 64 small experts for 8 tokens of different examples.
  'mot': dict(router='mixture_of_tokens', num_experts=64, group_size=8),
  # One for 16 tokens, and half a dense MLP for every token.
  'segment_soft': dict(router='segment_soft', num_experts=64, segment=16),
}
SIZES = {
  '': dict(width=768, depth=12, mlp_dim=3072, num_heads=12, dropout=0.1),
  '_cpu': dict(width=128, depth=4, mlp_dim=512, num_heads=4),
}
ARGUMENTS = tuple(f'{model}{size}' for size in SIZES for model in MOE)


def get_config(argument: str = 'xmoe_cpu') -> ml_collections.ConfigDict:
  """Returns the config of a decoder, every second block of it a mixture."""
  config_lib.check_argument(argument, ARGUMENTS)
  config = config_lib.default(language.Config)
  config.name = argument
  model, size = argument.removesuffix('_cpu'), argument.endswith('_cpu')
  config.model.update(**SIZES['_cpu' if size else ''])
  if size:
    config.steps, config.log_every, config.eval_every = 1500, 100, 500
    config.data.update(
      source='jsonl:data/english',
      tokenizer='bpe:data/english.json',
      train_split='train',
      eval_split='val',
      length=128,
      batch_size=64,
      eval_batch_size=64,
    )
    config.model.update(vocab_size=2048, loss_chunk=2048)
  else:
    config.steps, config.eval_every = 60_000, 1000
    config.data.update(
      source='tokens:data/lm.bin',
      tokenizer='bpe:data/gpt2.json',
      train_split='train',
      eval_split='validation',
      length=1024,
      batch_size=256,
      eval_batch_size=256,
    )
    config.model.update(
      vocab_size=50_304, dtype='bfloat16', remat=True, loss_chunk=4096
    )

  width = config.model.get_ref('mlp_dim')
  if model != 'dense':
    every, size = (1, 1) if model == 'all_on' else (2, 8)
    blocks = tuple(range(every - 1, config.model.depth, every))
    config.model.moe.update(blocks=blocks, **MOE[model])
    # Of all experts together, so many times the dense MLP's.
    config.model.moe.expert_dim = (
      size * width // config.model.moe.get_ref('num_experts')
    )
  if model == 'hash':
    size = config.model.vocab_size
    config.model.moe.router_options = (('vocab_size', size),)
  if model == 'segment_soft':
    config.model.moe.shared_dim = width // 2

  config.optimizer.update(
    learning_rate=4.5e-4,
    b2=0.95,
    weight_decay=(('.*/kernel', 0.1),),
    clip_norm=1.0,
  )
  if argument.endswith('_cpu'):
    config.optimizer.learning_rate = 3e-3
  config.optimizer.schedule.update(name='cosine', warmup=config.steps // 10)
  return config
