"""The ViT, plain and soft, against the same model in NumPy, in float64.

The NumPy one goes image by image and head by head.
"""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.models import config as model_config
from softmoe.models import vit


def softmax(x, axis):
  e = np.exp(x - np.max(x, axis=axis, keepdims=True))
  return e / np.sum(e, axis=axis, keepdims=True)


def linear(p, x):
  return x @ p['kernel'] + p['bias']


def norm(p, x):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)
  return x * p['scale'] + p.get('bias', 0)


def mlp(p, x):
  h = linear(p['up'], x)
  h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
  return linear(p['down'], h)


def attention(p, x, memory, heads):
  q, k = linear(p['query'], x), linear(p['key'], memory)
  v = linear(p['value'], memory)
  size, outputs = x.shape[-1] // heads, []
  for h in range(heads):
    part = slice(h * size, (h + 1) * size)
    query, key = q[:, part], k[:, part]
    if 'query_norm' in p:
      query, key = norm(p['query_norm'], query), norm(p['key_norm'], key)
    weights = softmax(query @ key.T / np.sqrt(size), axis=-1)
    outputs.append(weights @ v[:, part])
  return linear(p['out'], np.concatenate(outputs, axis=-1))


def moe(p, x):
  unit = lambda v, axis: v / np.sqrt(np.sum(v**2, axis, keepdims=True) + 1e-6)
  phi = p['router']['scale'] * unit(p['router']['phi'], 0)
  logits = np.einsum('nd,des->nes', unit(x, 1), phi)
  slots = np.einsum('nd,nes->esd', x, softmax(logits, 0))
  experts = p['experts']['stacked']
  pick = lambda i: jax.tree.map(lambda w: w[i], experts)
  y = np.stack([mlp(pick(i), slot) for i, slot in enumerate(slots)])
  combine = softmax(logits.reshape(len(x), -1), 1).reshape(logits.shape)
  return np.einsum('esd,nes->nd', y, combine)


def tokens(p, image):
  kernel = p['kernel']
  height, width = kernel.shape[:2]
  x = [
    np.einsum('pqc,pqcd->d', image[i : i + height, j : j + width], kernel)
    for i in range(0, image.shape[0] - height + 1, height)
    for j in range(0, image.shape[1] - width + 1, width)
  ]
  x = np.stack(x) + p['bias']
  if 'class_token' in p:
    x = np.concatenate([p['class_token'][0], x])
  return x + p['position'][0]


def pool(config, p, x):
  if config.pool == 'gap':
    return x.mean(axis=0)
  if config.pool == 'token':
    return x[0]
  p = p['map_head']
  y = attention(p['attention'], p['probe'][0], x, config.num_heads)
  return (y + mlp(p['mlp'], norm(p['norm'], y)))[0]


def reference(config, p, image):
  """Returns the logits of one image."""
  x = tokens(p['patches'], image)
  for i in range(config.depth):
    block = p['blocks'][i]
    y = norm(block['attention_norm'], x)
    x = x + attention(block['attention'], y, y, config.num_heads)
    half = moe if i in config.moe.blocks else mlp
    x = x + half(block['mlp'], norm(block['mlp_norm'], x))
  x = pool(config, p, norm(p['norm'], x))
  if config.representation_size:
    x = np.tanh(linear(p['pre_logits'], x))
  return linear(p['head'], x)


def small(**changes):
  config = vit.ViTConfig(
    patch_size=(4, 2), width=16, depth=2, mlp_dim=24, num_heads=2
  )
  return dataclasses.replace(config, **changes)


def soft(*moe_blocks):
  return model_config.MoEConfig(
    blocks=moe_blocks, num_experts=3, slots_per_expert=2
  )


def random_model(config, image_size):
  """Returns the model's structure, and parameters of which none is special."""
  model = nnx.eval_shape(
    lambda: vit.ViT(
      config,
      image_size=image_size,
      channels=3,
      num_classes=5,
      rngs=nnx.Rngs(0),
    )
  )
  rng = np.random.default_rng(0)
  graphdef, state = nnx.split(model)
  draw = lambda w: jnp.asarray(0.4 * rng.normal(size=w.shape) + 0.1, w.dtype)
  return graphdef, jax.tree.map(draw, nnx.to_pure_dict(state))


@pytest.mark.parametrize(
  'changes',
  [
    {'pool': 'gap'},
    {'pool': 'token', 'qk_norm': True},
    {'pool': 'map', 'representation_size': 7},
    {'pool': 'gap', 'representation_size': 7, 'moe': soft(1)},
    {'pool': 'map', 'qk_norm': True, 'moe': soft(0, 1)},
  ],
  ids=['gap', 'token qk', 'map pre-logits', 'soft', 'soft map qk'],
)
def test_equals_numpy(changes):
  config = small(**changes)
  graphdef, params = random_model(config, (12, 8))
  images = jax.random.normal(jax.random.key(1), (3, 12, 8, 3))
  logits, _ = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x))(params, images)
  exact = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
  expected = [reference(config, exact, image) for image in np.asarray(images)]
  np.testing.assert_allclose(logits, np.stack(expected), rtol=1e-5, atol=1e-5)
