"""The fields of models: what transformers share, and what each adds."""

import dataclasses
from typing import Annotated, Any

from softmoe.ranges import AMOUNT, CAPACITY, COUNT, DEPTH, SHARE, SIZE, Range


@dataclasses.dataclass(frozen=True)
class MoEConfig:
  """Which blocks are mixtures of experts, and how they route.

  A router reads the fields that it knows; `softmoe.models.mixtures` says which.
  """

  router: str = 'soft'  # or 'my_module:MyRouter'
  # (argument, value) pairs of what a router takes beside the fields below.
  router_options: tuple[tuple[str, Any], ...] = ()
  # Indices of the MoE blocks; empty: none.
  blocks: tuple[Annotated[int, COUNT], ...] = ()
  num_experts: Annotated[int, SIZE] = 1
  expert_dim: Annotated[int, COUNT] = 0  # hidden width of an expert; 0: mlp_dim
  expert_init: str = 'independent'  # or 'identical'
  # Of what is added to each kernel of an expert, for fine-tuning; 0: nothing.
  lora_rank: Annotated[int, COUNT] = 0
  # Hidden width of an MLP for every token; 0: none.
  shared_dim: Annotated[int, COUNT] = 0
  # Examples whose tokens are routed together.
  group_size: Annotated[int, SIZE] = 1
  # Parts in which slots travel; not for dropless.
  exchange_chunks: Annotated[int, SIZE] = 1
  # Dropless on GPU and TPU: a device has room for so many times an even load,
  # and what is more comes in further rounds.
  buffer_factor: Annotated[float, Range(0.01, 1000)] = 1.25
  # For timings: 'even' or 'one', the best and the worst that a router can do.
  forced_routing: str = ''
  slots_per_expert: Annotated[int, SIZE] = 1  # soft routers
  # Soft routers: start of the logits' scale, not 0.
  scale_init: Annotated[float, Range(-1e6, 1e6)] = 1.0
  # Tokens whose slots the next as many read: 'segment_soft'.
  segment: Annotated[int, SIZE] = 64
  k: Annotated[int, SIZE] = 1  # experts of a token
  capacity_factor: Annotated[float, CAPACITY] = 0.0  # 0: nothing is dropped
  # 0: as in training.
  eval_capacity_factor: Annotated[float, CAPACITY] = 0.0
  batch_priority: bool = False
  normalize: bool = False  # the gates of a token's experts sum to 1
  num_null: Annotated[int, COUNT] = 0  # experts that return 0
  # Of the logits in training, times the experts.
  noise_std: Annotated[float, AMOUNT] = 0.0
  softmax_over: str = 'experts'  # or 'tokens'; 'experts_choice' only
  threshold: Annotated[float, Range(0, 1, without=0)] = 0.9
  temperature: Annotated[float, Range(0, 1000)] = 1.0
  # (name, coefficient) pairs.
  losses: tuple[tuple[str, Annotated[float, AMOUNT]], ...] = ()
  # Coefficient of the loss of 'threshold'.
  balance: Annotated[float, AMOUNT] = 0.01
  # By how much 'bias_balanced' moves its bias in a step.
  rate: Annotated[float, AMOUNT] = 1e-3


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes and types of a stack of blocks; models add fields of their own."""

  width: Annotated[int, SIZE] = 384
  depth: Annotated[int, DEPTH] = 12
  mlp_dim: Annotated[int, SIZE] = 1536
  num_heads: Annotated[int, SIZE] = 6
  qk_norm: bool = False
  norm: str = 'pre'  # or 'post': after each part of a block
  # Of every LayerNorm; Hugging Face's ViT: 1e-12.
  norm_epsilon: Annotated[float, Range(0, 1)] = 1e-6
  # Of MLPs and experts: 'gelu' is its tanh approximation, as in big_vision;
  # 'gelu_exact', as in timm and Hugging Face; 'relu'; 'swiglu'.
  activation: str = 'gelu'
  attention: str = 'plain'  # or 'xla', 'cudnn', 'pallas': see `attention`
  # 'learned' of models of text; 'rotary': in the attention of tokens to each
  # other. Patches of images have positions of their own.
  positions: str = 'none'
  dropout: Annotated[float, SHARE] = 0.0
  # Rate of the last block; grows linearly with depth.
  drop_path: Annotated[float, SHARE] = 0.0
  dtype: str = 'float32'  # of the computation
  param_dtype: str = 'float32'
  remat: bool = False  # compute blocks again in the backward pass
  scan: bool = False  # one compiled body for each run of equal blocks
  moe: MoEConfig = MoEConfig()


@dataclasses.dataclass(frozen=True)
class ViTConfig(TransformerConfig):
  """A vision transformer; `vit.variant('S/16')` fills the sizes."""

  patch_size: tuple[Annotated[int, SIZE], Annotated[int, SIZE]] = (16, 16)
  pool: str = 'gap'  # 'gap', 'token' or 'map'
  # Width of the tanh pre-logits layer; 0: none.
  representation_size: Annotated[int, COUNT] = 0


@dataclasses.dataclass(frozen=True)
class TextConfig(TransformerConfig):
  """A transformer over a vocabulary, such as an encoder of texts."""

  positions: str = 'learned'
  # 0: that of the tokenizer.
  vocab_size: Annotated[int, Range(0, 2**30)] = 0


@dataclasses.dataclass(frozen=True)
class DecoderConfig(TextConfig):
  """A decoder-only transformer."""

  tied: bool = True  # the head is the embedding
  # Tokens of a device whose logits exist at a time; 0: all.
  loss_chunk: Annotated[int, Range(0, 2**30)] = 0
  # Takes routers by which a token's output may depend on later tokens.
  allow_noncausal: bool = False


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig(DecoderConfig):
  """An encoder and a decoder; `depth` and `moe.blocks` are the encoder's."""

  decoder_depth: Annotated[int, Range(0, 10_000)] = 0  # 0: as the encoder
  # With the router of the encoder.
  decoder_moe_blocks: tuple[Annotated[int, COUNT], ...] = ()
