import ml_collections

from softmoe import config as config_lib


def get_config(model: str = 'soft') -> ml_collections.ConfigDict:
  config = config_lib.default()
  config.name = f'digits {model}'
  config.steps = 600
  config.log_every = 100
  config.data.source = 'digits'
  config.data.batch_size = 128
  config.data.eval_batch_size = 512
  config.data.train.crop = 'pad'
  config.data.train.padding = 1
  config.model.update(
    patch_size=(2, 2), width=64, depth=4, mlp_dim=256, num_heads=4
  )
  config.optimizer.learning_rate = 2e-3
  config.optimizer.weight_decay = (('.*/kernel', 0.05),)
  config.optimizer.clip_norm = 1.0
  config.optimizer.schedule.update(name='cosine', warmup=60)
  config.checkpoint.every = 200
  if model == 'soft':
    config.model.moe.update(
      blocks=(2, 3), num_experts=8, slots_per_expert=2
    )
  return config
