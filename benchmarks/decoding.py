"""How fast does a mixture write, beside the dense model?

python benchmarks/decoding.py

The language models of `configs/lm.py` that are sized for two cores, with fresh
parameters: tokens a second, one at a time from the cache, greedy, all examples
together, the reading of the prompt included; and the time over that of the
dense model. Fresh routers are undecided: at its threshold of 0.9 XMoE's tokens
want most of the experts, and 'xmoe, t=0.2' shows what a threshold saves.
"""

import functools
import runpy
from collections.abc import Callable

import jax
import timing
from flax import nnx

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.models import generation
from softmoe.tables import markdown

MODELS = {
  'dense': ('dense_cpu', {}),
  'top-1 of 8': ('top1_cpu', {}),
  'hash, 1 of 8': ('hash_cpu', {}),
  'top-8 of 64': ('topk_cpu', {}),
  'xmoe, t=0.9': ('xmoe_cpu', {}),
  'xmoe, t=0.2': ('xmoe_cpu', {'threshold': 0.2}),
  'expert threshold': ('expert_threshold_cpu', {}),
  'relu': ('relu_cpu', {}),
  'mixture of tokens': ('mot_cpu', {}),
  'segment soft': ('segment_soft_cpu', {}),
}
BATCHES, PROMPT, TOKENS = (1, 8), 32, 64
ROUNDS = 1


def main() -> None:
  """Prints a Markdown table."""
  get_config = runpy.run_path('configs/lm.py')['get_config']
  runs = {}
  for name, (argument, fields) in MODELS.items():
    config = get_config(argument)
    config.model.moe.update(fields)
    for batch in BATCHES:
      runs[name, batch] = make_run(experiment_lib.parse(config), batch)
  print(f'{timing.where()}\n\n{table(timing.interleaved(runs, ROUNDS))}')


def make_run(config: config_lib.Config, batch: int) -> Callable:
  """Returns what writes TOKENS tokens for each of `batch` prompts."""
  experiment = experiment_lib.build(config, jax.devices()[:1])
  model = nnx.merge(experiment.graphdef, jax.jit(experiment.init_params)())
  prompt = jax.random.randint(
    jax.random.key(1), (batch, PROMPT), 0, config.model.vocab_size
  )
  how = generation.Sampling(TOKENS, temperature=0.0)
  write = functools.partial(
    generation.generate, model, prompt, how, jax.random.key(2)
  )

  def run() -> jax.Array:
    with jax.set_mesh(experiment.mesh):
      return write()

  return run


def table(seconds: dict[tuple[str, int], float]) -> str:
  """Returns a row for each model."""
  header, rows = ['model'], {name: [name] for name in MODELS}
  for batch in BATCHES:
    header += [f'tokens/s, {batch} at once', 'time of dense']
    for name, row in rows.items():
      value = seconds[name, batch]
      row.append(f'{batch * TOKENS / value:,.0f}')
      row.append(f'{value / seconds["dense", batch]:.2f}')
  return markdown.table(header, list(rows.values()))


if __name__ == '__main__':
  main()
