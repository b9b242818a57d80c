"""Layer 4: networks. Modules, layers, costs and initial values; parameters in a flat arena."""

from gpubackprop.nn import functional, init
from gpubackprop.nn.activations import (
    ELU,
    GELU,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from gpubackprop.nn.arena import Arena
from gpubackprop.nn.containers import ModuleDict, ModuleList, Sequential
from gpubackprop.nn.layers import (
    Dropout,
    Embedding,
    Flatten,
    Identity,
    Lambda,
    LayerNorm,
    Linear,
)
from gpubackprop.nn.loss_modules import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    Loss,
    MSELoss,
    NLLLoss,
    QuadraticCost,
    SmoothL1Loss,
)
from gpubackprop.nn.module import Module
from gpubackprop.nn.parameter import Parameter

__all__ = [
    "ELU",
    "GELU",
    "Arena",
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "Flatten",
    "HuberLoss",
    "Identity",
    "KLDivLoss",
    "L1Loss",
    "Lambda",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "Loss",
    "MSELoss",
    "Module",
    "ModuleDict",
    "ModuleList",
    "NLLLoss",
    "Parameter",
    "QuadraticCost",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softplus",
    "Tanh",
    "functional",
    "init",
]
