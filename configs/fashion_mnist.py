import ml_collections

from softmoe import config as config_lib

ARGUMENTS = ('soft', 'vit')


def get_config(model: str = 'soft') -> ml_collections.ConfigDict:
  config = config_lib.default()
  config.name = {'soft': 'Soft MoE', 'vit': 'ViT'}[model]
  config.steps = 10_500
  config.log_every = 100
  config.eval_every = 1400

  config.data.update(
    source='idx:/usr/share/datasets/fashion-mnist',
    image_size=(28, 28),
    batch_size=128,
  )
  config.data.train.update(crop='pad', padding=1, flip=True)

  config.model.update(
    patch_size=(7, 7), width=128, depth=6, mlp_dim=512, num_heads=4
  )
  if model == 'soft':
    config.model.moe.update(
      blocks=(3, 4, 5), num_experts=12, slots_per_expert=1
    )

  config.optimizer.update(
    learning_rate=2e-3, weight_decay=(('.*/kernel', 0.1),), clip_norm=1.0
  )
  config.optimizer.schedule.update(name='cosine', warmup=400)
  config.checkpoint.every = 1400
  return config
