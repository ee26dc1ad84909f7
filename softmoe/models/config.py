"""The fields of models: what transformers share, and what each adds."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class MoEConfig:
  """Which blocks are mixtures of experts, and how they route.

  A router reads the fields that it knows; `softmoe.models.mixtures` says which.
  """

  router: str = 'soft'  # or 'my_module:MyRouter'
  # (argument, value) pairs of what a router takes beside the fields below.
  router_options: tuple[tuple[str, Any], ...] = ()
  blocks: tuple[int, ...] = ()  # indices of the MoE blocks; empty: none
  num_experts: int = 1
  expert_dim: int = 0  # hidden width of an expert; 0: mlp_dim
  expert_init: str = 'independent'  # or 'identical'
  shared_dim: int = 0  # hidden width of an MLP for every token; 0: none
  group_size: int = 1  # examples whose tokens are routed together
  exchange_chunks: int = 1  # parts in which slots travel; not for dropless
  slots_per_expert: int = 1  # soft routers
  scale_init: float = 1.0  # soft routers: start of the logits' scale
  segment: int = 64  # tokens whose slots the next as many read: 'segment_soft'
  k: int = 1  # experts of a token
  capacity_factor: float = 0.0  # 0: nothing is dropped
  eval_capacity_factor: float = 0.0  # 0: as in training
  batch_priority: bool = False
  normalize: bool = False  # the gates of a token's experts sum to 1
  num_null: int = 0  # experts that return 0
  noise_std: float = 0.0  # of the logits in training, times the experts
  softmax_over: str = 'experts'  # or 'tokens'; 'experts_choice' only
  threshold: float = 0.9
  temperature: float = 1.0
  losses: tuple[tuple[str, float], ...] = ()  # (name, coefficient) pairs
  balance: float = 0.01  # coefficient of the loss of 'threshold'
  rate: float = 1e-3  # by how much 'bias_balanced' moves its bias in a step


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes and types of a stack of blocks; models add fields of their own."""

  width: int = 384
  depth: int = 12
  mlp_dim: int = 1536
  num_heads: int = 6
  qk_norm: bool = False
  norm: str = 'pre'  # or 'post': after each part of a block
  norm_epsilon: float = 1e-6  # of every LayerNorm; Hugging Face's ViT: 1e-12
  # Of MLPs and experts: 'gelu' is its tanh approximation, as in big_vision;
  # 'gelu_exact', as in timm and Hugging Face; 'relu'; 'swiglu'.
  activation: str = 'gelu'
  attention: str = 'plain'  # or 'xla', 'cudnn', 'pallas': see `attention`
  # 'learned' of models of text; 'rotary': in the attention of tokens to each
  # other. Patches of images have positions of their own.
  positions: str = 'none'
  dropout: float = 0.0
  drop_path: float = 0.0  # rate of the last block; grows linearly with depth
  dtype: str = 'float32'  # of the computation
  param_dtype: str = 'float32'
  remat: bool = False  # compute blocks again in the backward pass
  scan: bool = False  # one compiled body for each run of equal blocks
  moe: MoEConfig = MoEConfig()


@dataclasses.dataclass(frozen=True)
class ViTConfig(TransformerConfig):
  """A vision transformer; `vit.variant('S/16')` fills the sizes."""

  patch_size: tuple[int, int] = (16, 16)
  pool: str = 'gap'  # 'gap', 'token' or 'map'
  representation_size: int = 0  # width of the tanh pre-logits layer; 0: none


@dataclasses.dataclass(frozen=True)
class DecoderConfig(TransformerConfig):
  """A decoder-only transformer over a vocabulary."""

  positions: str = 'learned'
  vocab_size: int = 0  # 0: that of the tokenizer
  tied: bool = True  # the head is the embedding
  loss_chunk: int = 0  # tokens of a device whose logits exist at a time; 0: all
  # Takes routers by which a token's output may depend on later tokens.
  allow_noncausal: bool = False


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig(DecoderConfig):
  """An encoder and a decoder; `depth` and `moe.blocks` are the encoder's."""

  decoder_depth: int = 0  # 0: as the encoder
  decoder_moe_blocks: tuple[int, ...] = ()  # with the router of the encoder
