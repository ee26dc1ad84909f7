# Every public name, once: type checkers and editors read this file, and
# __init__.py imports from the places that it gives.
from softmoe.moe.execution.grouped_matmul import (
  grouped_matmul as grouped_matmul,
)
from softmoe.moe.experts import Experts as Experts
from softmoe.moe.layer import MoE as MoE
from softmoe.moe.layer import SoftMoE as SoftMoE
from softmoe.moe.mlp import Mlp as Mlp
from softmoe.moe.routers.bias_balanced import BiasBalanced as BiasBalanced
from softmoe.moe.routers.expert_threshold import (
  ExpertThreshold as ExpertThreshold,
)
from softmoe.moe.routers.experts_choice import ExpertsChoice as ExpertsChoice
from softmoe.moe.routers.hashing import HashRouter as HashRouter
from softmoe.moe.routers.mixture_of_tokens import (
  MixtureOfTokens as MixtureOfTokens,
)
from softmoe.moe.routers.relu import ReLURouter as ReLURouter
from softmoe.moe.routers.segment_soft import SegmentSoft as SegmentSoft
from softmoe.moe.routers.soft import IdentityRouter as IdentityRouter
from softmoe.moe.routers.soft import SoftRouter as SoftRouter
from softmoe.moe.routers.threshold import Threshold as Threshold
from softmoe.moe.routers.tokens_choice import TokensChoice as TokensChoice
from softmoe.moe.routing import Assignment as Assignment
from softmoe.moe.routing import Aux as Aux
from softmoe.moe.routing import Slots as Slots
from softmoe.runs.load import load as load
