"""Vanishing Gradients: the code of the book, one module a topic.

    import vanishing as vg

Everything public is reached from here. What draws, shows or runs in parallel is imported when
it is first used, so that this import costs little more than NumPy's.
"""

import importlib

from .activations import ACTIVATIONS, Activation, activation, relu, sigmoid, tanh
from .adam import SGD, AdaGrad, Adam, AdamW, AMSGrad, RMSProp, bias_correction_excess, ema
from .backpropagation import (
    Activate,
    Dense,
    Sequential,
    central_difference,
    d_mean_squared_error,
    gradcheck,
    mean_squared_error,
    mlp,
)
from .chain_rule import (
    gaussian_growth_rate,
    gradient_flow,
    log10_norms,
    log10_product,
    lognormal_factors,
    lognormal_rates,
    product_grid,
    relu_growth_rate,
)
from .clipping import clip_adaptive, clip_by_norm, clip_by_value, global_norm
from .data import adding_problem, characters, copy_task, digits, digits_sequence
from .initialization import GAINS, gain, initialize, lsuv, variance_factors
from .mean_field import MeanField, c_map, critical_weight_variance, mean_field, q_map
from .mini_batch import (
    batch_gradients,
    batches,
    constant_rate,
    cosine_decay,
    gradient_noise,
    step_decay,
    warm_up,
)
from .normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm, WeightNormDense, set_training
from .recurrent import GRU, LSTM, RNN, gradient_through_time, spectral_radius
from .residuals import DenseSkip, Highway, PostNorm, PreNorm, Residual
from .softmax import (
    Attention,
    Skips,
    Softmax,
    cross_entropy,
    d_cross_entropy,
    d_log_softmax,
    d_softmax,
    d_sparsemax,
    gradient_decay,
    log_softmax,
    remedy_grid,
    softmax,
    softmax_jacobian,
    softmax_stack,
    softmax_vjp,
    sparsemax,
    sparsemax_jacobian,
)
from .spectrum import log10_singular_values
from .sweep import Sweep, SweepError, sweep

# Where the names live that are imported when they are first used.
_LATER = {
    "Explorable": "explorable",
    "band": "figures",
    "bench": "panel",
    "lines": "figures",
    "style": "figures",
    "claim": "ledger",
    "glue": "ledger",
    "reproduction": "ledger",
    "scientific": "ledger",
    "accepts": "exercises",
    "check": "exercises",
    "differs": "exercises",
    "expects": "exercises",
    "rejects": "exercises",
}
_MODULES = ("exercises", "explorable", "figures", "ledger", "live", "panel")

__all__ = sorted({name for name in dir() if not name.startswith("_")} - {"importlib"} | _LATER.keys() | set(_MODULES))


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"vanishing.{name}")
    if name in _LATER:
        return getattr(importlib.import_module(f"vanishing.{_LATER[name]}"), name)
    raise AttributeError(f"module 'vanishing' has no attribute {name!r}")


def __dir__():
    return __all__
