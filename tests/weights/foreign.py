"""Tiny ViTs of other libraries in NumPy: arrays by name, and their logits.

Written from what those libraries compute, not from our tables. Axes: `b`
images, `n` tokens, `d` width, `h` heads, `k` width of a head.
"""

import math

import numpy as np

WIDTH, DEPTH, MLP, HEADS, PATCH, CLASSES, CHANNELS = 16, 2, 32, 2, 4, 5, 3
SIZE = 8
EXPERTS, SLOTS = 4, 1
_K = WIDTH // HEADS
_TOKENS = (SIZE // PATCH) ** 2


def images(count=3):
  shape = (count, SIZE, SIZE, CHANNELS)
  return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def draw(shapes, seed=0):
  """Returns every array at random, matrices so that logits are about 1."""
  rng = np.random.default_rng(seed)
  arrays = {}
  for name, shape in shapes.items():
    size = math.prod(shape)
    scale = 0.4 if len(shape) < 2 else (2 * max(shape) / size) ** 0.5
    scale *= 2.5 if name.startswith(('head', 'classifier')) else 1
    arrays[name] = np.asarray(rng.normal(0, scale, shape), np.float32)
    if 'norm' in name.lower() and name.endswith(('weight', 'scale')):
      arrays[name] += 1
  return arrays


# --- The model, given its layers as functions.


def layer_norm(x, scale, bias, epsilon):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt(x.var(-1, keepdims=True) + epsilon) * scale + bias


def gelu(x, exact):
  if exact:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
  inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
  return x * (1 + np.tanh(inner)) / 2


def softmax(x, axis=-1):
  x = np.exp(x - x.max(axis, keepdims=True))
  return x / x.sum(axis, keepdims=True)


def attend(query, key, value):
  """Returns (b, q, h, k) from queries, keys and values of that form."""
  weights = softmax(np.einsum('bqhk,bnhk->bhqn', query, key) / math.sqrt(_K))
  return np.einsum('bhqn,bnhk->bqhk', weights, value)


def cut(x):
  """Returns (b, n, p, q, c): the patches of images, row by row."""
  side = SIZE // PATCH
  x = x.reshape(len(x), side, PATCH, side, PATCH, CHANNELS)
  return np.swapaxes(x, 2, 3).reshape(len(x), -1, PATCH, PATCH, CHANNELS)


def prepend(token, x):
  return np.concatenate([np.repeat(token, len(x), axis=0), x], axis=1)


# --- timm.


def _linear(name, outputs, inputs):
  return {f'{name}.weight': (outputs, inputs), f'{name}.bias': (outputs,)}


def _norm(name):
  return {f'{name}.weight': (WIDTH,), f'{name}.bias': (WIDTH,)}


def timm(pool='token', layer_scale=False):
  """Returns shapes by name, and from arrays and images to logits."""
  token = pool == 'token'
  shapes = {
    'pos_embed': (1, _TOKENS + token, WIDTH),
    'patch_embed.proj.weight': (WIDTH, CHANNELS, PATCH, PATCH),
    'patch_embed.proj.bias': (WIDTH,),
    **_norm('norm'),
    **_linear('head', CLASSES, WIDTH),
  }
  if token:
    shapes['cls_token'] = (1, 1, WIDTH)
  for i in range(DEPTH):
    block = f'blocks.{i}'
    shapes |= _norm(f'{block}.norm1') | _norm(f'{block}.norm2')
    shapes |= _linear(f'{block}.attn.qkv', 3 * WIDTH, WIDTH)
    shapes |= _linear(f'{block}.attn.proj', WIDTH, WIDTH)
    shapes |= _linear(f'{block}.mlp.fc1', MLP, WIDTH)
    shapes |= _linear(f'{block}.mlp.fc2', WIDTH, MLP)
    if layer_scale:
      shapes |= {f'{block}.ls{j}.gamma': (WIDTH,) for j in (1, 2)}
  if pool == 'map':
    shapes['attn_pool.latent'] = (1, 1, WIDTH)
    shapes |= _linear('attn_pool.q', WIDTH, WIDTH)
    shapes |= _linear('attn_pool.kv', 2 * WIDTH, WIDTH)
    shapes |= _linear('attn_pool.proj', WIDTH, WIDTH) | _norm('attn_pool.norm')
    shapes |= _linear('attn_pool.mlp.fc1', MLP, WIDTH)
    shapes |= _linear('attn_pool.mlp.fc2', WIDTH, MLP)

  def logits(w, x):
    linear = lambda n, x: x @ w[f'{n}.weight'].T + w[f'{n}.bias']
    norm = lambda n, x: layer_norm(x, w[f'{n}.weight'], w[f'{n}.bias'], 1e-6)
    heads = lambda x, of: x.reshape(*x.shape[:2], of, HEADS, _K)
    scale = lambda n: w.get(n, 1.0)
    flat = lambda y: y.reshape(*y.shape[:2], WIDTH)
    mlp = lambda n, x: linear(f'{n}.fc2', gelu(linear(f'{n}.fc1', x), True))
    x = np.einsum('bnpqc,dcpq->bnd', cut(x), w['patch_embed.proj.weight'])
    x = x + w['patch_embed.proj.bias']
    x = (prepend(w['cls_token'], x) if token else x) + w['pos_embed']
    for i in range(DEPTH):
      block = f'blocks.{i}'
      qkv = heads(linear(f'{block}.attn.qkv', norm(f'{block}.norm1', x)), 3)
      y = flat(attend(*np.moveaxis(qkv, 2, 0)))
      x = x + scale(f'{block}.ls1.gamma') * linear(f'{block}.attn.proj', y)
      y = mlp(f'{block}.mlp', norm(f'{block}.norm2', x))
      x = x + scale(f'{block}.ls2.gamma') * y
    x = norm('norm', x)
    if pool == 'map':
      probe = np.repeat(w['attn_pool.latent'], len(x), axis=0)
      query = heads(linear('attn_pool.q', probe), 1)[:, :, 0]
      key, value = np.moveaxis(heads(linear('attn_pool.kv', x), 2), 2, 0)
      y = linear('attn_pool.proj', flat(attend(query, key, value)))
      x = y + mlp('attn_pool.mlp', norm('attn_pool.norm', y))
    x = x.mean(1) if pool == 'gap' else x[:, 0]
    return linear('head', x)

  return shapes, logits


# --- Hugging Face.


def hugging_face():
  """Returns the same of `ViTForImageClassification`, epsilon 1e-12."""
  embed = 'vit.embeddings'
  shapes = {
    f'{embed}.cls_token': (1, 1, WIDTH),
    f'{embed}.position_embeddings': (1, _TOKENS + 1, WIDTH),
    f'{embed}.patch_embeddings.projection.weight': (
      WIDTH,
      CHANNELS,
      PATCH,
      PATCH,
    ),
    f'{embed}.patch_embeddings.projection.bias': (WIDTH,),
    **_norm('vit.layernorm'),
    **_linear('classifier', CLASSES, WIDTH),
  }
  for i in range(DEPTH):
    layer = f'vit.encoder.layer.{i}'
    shapes |= _norm(f'{layer}.layernorm_before')
    shapes |= _norm(f'{layer}.layernorm_after')
    for part in ('query', 'key', 'value'):
      shapes |= _linear(f'{layer}.attention.attention.{part}', WIDTH, WIDTH)
    shapes |= _linear(f'{layer}.attention.output.dense', WIDTH, WIDTH)
    shapes |= _linear(f'{layer}.intermediate.dense', MLP, WIDTH)
    shapes |= _linear(f'{layer}.output.dense', WIDTH, MLP)

  def logits(w, x):
    linear = lambda n, x: x @ w[f'{n}.weight'].T + w[f'{n}.bias']
    norm = lambda n, x: layer_norm(x, w[f'{n}.weight'], w[f'{n}.bias'], 1e-12)
    projection = f'{embed}.patch_embeddings.projection'
    x = np.einsum('bnpqc,dcpq->bnd', cut(x), w[f'{projection}.weight'])
    x = prepend(w[f'{embed}.cls_token'], x + w[f'{projection}.bias'])
    x = x + w[f'{embed}.position_embeddings']
    for i in range(DEPTH):
      layer = f'vit.encoder.layer.{i}'
      y = norm(f'{layer}.layernorm_before', x)
      parts = (
        linear(f'{layer}.attention.attention.{part}', y).reshape(
          *y.shape[:2], HEADS, _K
        )
        for part in ('query', 'key', 'value')
      )
      y = attend(*parts).reshape(x.shape)
      x = x + linear(f'{layer}.attention.output.dense', y)
      y = norm(f'{layer}.layernorm_after', x)
      y = gelu(linear(f'{layer}.intermediate.dense', y), True)
      x = x + linear(f'{layer}.output.dense', y)
    return linear('classifier', norm('vit.layernorm', x)[:, 0])

  return shapes, logits


# --- Flax: big_vision, AugReg and vmoe.

BIG_VISION = {
  'position': 'pos_embedding',
  'encoder': 'Transformer',
  'attention': 'MultiHeadDotProductAttention_0',
  'second': 'LayerNorm_1',
  'mlp': 'MlpBlock_0',
  'map': 'MAPHead_0',
  'map_attention': 'MultiHeadDotProductAttention_0',
  'map_norm': 'LayerNorm_0',
  'map_mlp': 'MlpBlock_0',
}
AUGREG = BIG_VISION | {
  'position': 'Transformer/posembed_input/pos_embedding',
  'attention': 'MultiHeadDotProductAttention_1',
  'second': 'LayerNorm_2',
  'mlp': 'MlpBlock_3',
}
VMOE = {
  'position': 'Encoder/posembed_input/pos_embedding',
  'encoder': 'Encoder',
  'attention': 'SelfAttention',
  'second': 'LayerNorm_1',
  'mlp': 'Mlp',
  'map': 'MapHead',
  'map_attention': 'MultiHeadDotProductAttention',
  'map_norm': 'LayerNorm',
  'map_mlp': 'Mlp',
}


def flax(names, pool='token', representation=0, moe=False):
  """Returns the same of a Flax model; `moe`: Soft MoE in the last block."""
  token, last = pool == 'token', representation or WIDTH
  late = token and names is BIG_VISION  # the class token, after the positions
  shapes = {
    'embedding/kernel': (PATCH, PATCH, CHANNELS, WIDTH),
    'embedding/bias': (WIDTH,),
    names['position']: (1, _TOKENS + token - late, WIDTH),
    **_flax_norm(f'{names["encoder"]}/encoder_norm'),
    **_dense('head', last, CLASSES),
  }
  if token:
    shapes['cls'] = (1, 1, WIDTH)
  if representation:
    shapes |= _dense('pre_logits', WIDTH, representation)
  for i in range(DEPTH):
    block = f'{names["encoder"]}/encoderblock_{i}'
    shapes |= _flax_norm(f'{block}/LayerNorm_0')
    shapes |= _flax_attention(f'{block}/{names["attention"]}')
    shapes |= _flax_norm(f'{block}/{names["second"]}')
    if moe and i == DEPTH - 1:
      shapes |= _experts(f'{block}/Moe')
    else:
      shapes |= _flax_mlp(f'{block}/{names["mlp"]}')
  if pool == 'map':
    head = names['map']
    shapes[f'{head}/probe'] = (1, 1, WIDTH)
    shapes |= _flax_attention(f'{head}/{names["map_attention"]}')
    shapes |= _flax_norm(f'{head}/{names["map_norm"]}')
    shapes |= _flax_mlp(f'{head}/{names["map_mlp"]}')

  def logits(w, x):
    dense = lambda n, x: x @ w[f'{n}/kernel'] + w[f'{n}/bias']
    norm = lambda n, x: layer_norm(x, w[f'{n}/scale'], w[f'{n}/bias'], 1e-6)

    def read(n, x):
      kernel = w[f'{n}/kernel']
      return np.einsum('bnd,dhk->bnhk', x, kernel) + w[f'{n}/bias']

    def attention(n, x, memory):
      parts = (
        read(f'{n}/query', x),
        *(read(f'{n}/{part}', memory) for part in ('key', 'value')),
      )
      y = np.einsum('bnhk,hkd->bnd', attend(*parts), w[f'{n}/out/kernel'])
      return y + w[f'{n}/out/bias']

    def mlp(n, x):
      return dense(f'{n}/Dense_1', gelu(dense(f'{n}/Dense_0', x), False))

    x = np.einsum('bnpqc,pqcd->bnd', cut(x), w['embedding/kernel'])
    x = x + w['embedding/bias']
    x = prepend(w['cls'], x) if token and not late else x
    x = x + w[names['position']]
    x = prepend(w['cls'], x) if late else x
    for i in range(DEPTH):
      block = f'{names["encoder"]}/encoderblock_{i}'
      y = norm(f'{block}/LayerNorm_0', x)
      x = x + attention(f'{block}/{names["attention"]}', y, y)
      y = norm(f'{block}/{names["second"]}', x)
      if moe and i == DEPTH - 1:
        x = x + _soft_moe(w, f'{block}/Moe', y)
      else:
        x = x + mlp(f'{block}/{names["mlp"]}', y)
    x = norm(f'{names["encoder"]}/encoder_norm', x)
    if pool == 'map':
      head = names['map']
      probe = np.repeat(w[f'{head}/probe'], len(x), axis=0)
      x = attention(f'{head}/{names["map_attention"]}', probe, x)
      y = norm(f'{head}/{names["map_norm"]}', x)
      x = x + mlp(f'{head}/{names["map_mlp"]}', y)
    x = x.mean(1) if pool == 'gap' else x[:, 0]
    x = np.tanh(dense('pre_logits', x)) if representation else x
    return dense('head', x)

  return shapes, logits


def _dense(name, inputs, outputs):
  return {f'{name}/kernel': (inputs, outputs), f'{name}/bias': (outputs,)}


def _flax_norm(name):
  return {f'{name}/scale': (WIDTH,), f'{name}/bias': (WIDTH,)}


def _flax_mlp(name):
  return _dense(f'{name}/Dense_0', WIDTH, MLP) | _dense(
    f'{name}/Dense_1', MLP, WIDTH
  )


def _flax_attention(name):
  shapes = {f'{name}/out/kernel': (HEADS, _K, WIDTH)}
  shapes[f'{name}/out/bias'] = (WIDTH,)
  for part in ('query', 'key', 'value'):
    shapes[f'{name}/{part}/kernel'] = (WIDTH, HEADS, _K)
    shapes[f'{name}/{part}/bias'] = (HEADS, _K)
  return shapes


def _experts(name):
  mlps = _flax_mlp(f'{name}/Mlp')
  return {n: (EXPERTS, *shape) for n, shape in mlps.items()} | {
    f'{name}/Router/mu': (WIDTH, EXPERTS, SLOTS),
    f'{name}/Router/scale': (),
  }


def _soft_moe(w, name, x):
  """Returns Soft MoE's output, by its Algorithm 1 with normalised logits."""
  unit = lambda v, axis: v / np.sqrt((v**2).sum(axis, keepdims=True) + 1e-6)
  phi = w[f'{name}/Router/scale'] * unit(w[f'{name}/Router/mu'], 0)
  logits = np.einsum('bnd,des->bnes', unit(x, -1), phi)
  slots = np.einsum('bnd,bnes->besd', x, softmax(logits, 1))
  w0, w1 = (f'{name}/Mlp/Dense_{i}' for i in (0, 1))
  h = np.einsum('besd,edf->besf', slots, w[f'{w0}/kernel'])
  h = gelu(h + w[f'{w0}/bias'][:, None], False)
  y = np.einsum('besf,efd->besd', h, w[f'{w1}/kernel'])
  y = y + w[f'{w1}/bias'][:, None]
  flat = logits.reshape(*logits.shape[:2], -1)
  combine = softmax(flat).reshape(logits.shape)
  return np.einsum('besd,bnes->bnd', y, combine)
