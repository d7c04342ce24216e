"""Skip connections: a path around a block, on which the gradient arrives unchanged.

    Residual     y = x + scale block(x)
    Highway      y = t block(x) + (1 - t) x, with a learned gate t
    DenseSkip    y = (x, block(x)), side by side

A block is any layer, so a skip over several blocks is a Residual around a Sequential of them, and
the wrappers nest in each other and in Sequential. In the keys of `parameters` the block's stand
behind "block.": "block.W", or "block.0.W" if it is a Sequential.
"""

import numpy as np

from ._validate import floating, lookup
from .backpropagation import Activate, Dense, Sequential, _sum_to

__all__ = ["DenseSkip", "Highway", "PostNorm", "PreNorm", "Residual", "residual"]


class Residual:
    """y = x + scale block(x).

    Args:
        block: a layer with as many outputs as inputs.
        scale: of the branch, a number, or an array (...): one for each network of an ensemble.
        learn_scale: whether it is a parameter, "scale". SkipInit and ReZero start it at 0, where
            the layer is the identity.

    Source: He et al. (2016); De & Smith (2020) for SkipInit, Bachlechner et al. (2021) for ReZero.
    """

    def __init__(self, block, *, scale=1.0, learn_scale=False):
        scale, weights = floating(scale, "scale"), block.parameters.values()
        if weights:
            scale = scale.astype(np.result_type(*weights))  # a float64 scale must not widen float32
        self.block = block
        self.learned = {"scale": scale.copy()} if learn_scale else {}
        self.fixed = scale if scale.ndim else scale.item()
        self.own_gradients = {}

    def forward(self, x):
        """y = x + scale block(x): (..., batch, n) -> the same shape."""
        self.branch = _same_width(self.block.forward(x), x)
        return x + self._scale(2) * self.branch

    def backward(self, dy, *, weights=True):
        """dL/dx = dy + scale (dL/dx of the block); dL/dscale = sum of dy block(x) over batch and units.

        The first term is why the gradient cannot vanish: it arrives whatever the block does.
        See `Dense.backward` for the arguments.
        """
        if weights and self.learned:
            d_scale = _sum_to((dy * self.branch).sum(axis=(-2, -1)), self.learned["scale"].shape)
            self.own_gradients["scale"] = np.asarray(d_scale)
        return dy + self.block.backward(self._scale(2) * dy, weights=weights)

    def jacobian(self, before=None):
        """dy/dx = I + scale (dblock/dx), shape (..., batch, n, n); see `Dense.jacobian`."""
        branch = self._scale(3) * self.block.jacobian(before)
        return branch + _identity_or(before, branch)

    def _scale(self, axes):
        """The scale with so many axes of length 1 behind it; a fixed number stays a plain one."""
        scale = self.learned.get("scale", self.fixed)
        return scale[(..., *axes * [None])] if np.ndim(scale) else scale

    @property
    def parameters(self):
        return _behind("block", self.block.parameters) | self.learned

    @property
    def gradients(self):
        return _behind("block", self.block.gradients) | self.own_gradients


def residual(scale, block, *, size=()):
    """Return the `Residual` that `scale` asks for.

    Args:
        scale: a number, an array that broadcasts to `size`, or "learn" for parameters that start at 0.
        block: as in `Residual`.
        size: leading axes of the block's parameters: an ensemble of independent networks.
    """
    if isinstance(scale, str):
        return Residual(block, scale=np.zeros(size), learn_scale=lookup("residual", scale, {"learn": True}))
    if isinstance(scale, bool):  # False would be a scale of 0, not the absence of a skip
        raise TypeError(f"residual: got {scale}, expected a number, an array or 'learn'")
    try:
        np.broadcast_to(floating(scale, "residual"), size)
    except ValueError:
        raise ValueError(
            f"residual: got shape {np.shape(scale)}, expected one that broadcasts to size {size}"
        ) from None
    return Residual(block, scale=scale)


def PreNorm(norm, block, *, scale=1.0, learn_scale=False):
    """y = x + scale block(norm(x)): nothing stands on the path of x itself.

    Args:
        norm: a normalization layer.
        block, scale, learn_scale: as in `Residual`.

    Source: Xiong et al. (2020).
    """
    return Residual(Sequential([norm, block]), scale=scale, learn_scale=learn_scale)


def PostNorm(norm, block, *, scale=1.0, learn_scale=False):
    """y = norm(x + scale block(x)), as in the first transformer: the gradient passes every norm.

    Args: as in `PreNorm`.

    Source: Vaswani et al. (2017); Xiong et al. (2020).
    """
    return Sequential([Residual(block, scale=scale, learn_scale=learn_scale), norm])


class Highway:
    """y = t block(x) + (1 - t) x, with t = sigmoid(x W + b) entry by entry.

    Args:
        block: a layer with as many outputs as inputs.
        W: weights of the gate, shape (..., n, n).
        b: biases of the gate, shape (..., n); zeros if not given. Below 0 the layer starts by
            carrying x: at -2, t is about 0.12.

    Source: Srivastava, Greff & Schmidhuber (2015).
    """

    def __init__(self, block, W, b=None):
        self.block, self.gate = block, Sequential([Dense(W, b), Activate("sigmoid")])

    def forward(self, x):
        """y = x + t (block(x) - x): (..., batch, n) -> the same shape."""
        self.t = _same_width(self.gate.forward(x), x)
        self.difference = _same_width(self.block.forward(x), x) - x
        return x + self.t * self.difference

    def backward(self, dy, *, weights=True):
        """dL/dx = (1 - t) dy, plus t dy sent through the block, plus (block(x) - x) dy through the gate.

        See `Dense.backward` for the arguments.
        """
        through_block = self.block.backward(self.t * dy, weights=weights)
        through_gate = self.gate.backward(self.difference * dy, weights=weights)
        return (1 - self.t) * dy + through_block + through_gate

    def jacobian(self, before=None):
        """dy/dx = diag(1 - t) + (dblock/dx) diag(t) + (dt/dx) diag(block(x) - x); see `Dense.jacobian`."""
        t, difference = self.t[..., None, :], self.difference[..., None, :]
        branches = t * self.block.jacobian(before) + difference * self.gate.jacobian(before)
        return branches + (1 - t) * _identity_or(before, branches)

    @property
    def parameters(self):
        return _behind("block", self.block.parameters) | _behind("gate", self.gate.parameters)

    @property
    def gradients(self):
        return _behind("block", self.block.gradients) | _behind("gate", self.gate.gradients)


class DenseSkip:
    """y = (x, block(x)), the units side by side: later layers see x itself.

    Args:
        block: a layer with any number of outputs.

    Source: Huang et al. (2017).
    """

    def __init__(self, block):
        self.block = block

    def forward(self, x):
        """y = (x, block(x)): (..., batch, n) -> (..., batch, n + k)."""
        branch = self.block.forward(x)
        self.n = x.shape[-1]
        return _side_by_side(x, branch)

    def backward(self, dy, *, weights=True):
        """dL/dx = the first n entries of dy, plus the others sent through the block.

        See `Dense.backward` for the arguments.
        """
        return dy[..., : self.n] + self.block.backward(dy[..., self.n :], weights=weights)

    def jacobian(self, before=None):
        """dy/dx = (I, dblock/dx), shape (..., batch, n, n + k); see `Dense.jacobian`."""
        branch = self.block.jacobian(before)
        return _side_by_side(np.eye(self.n, dtype=branch.dtype) if before is None else before, branch)

    @property
    def parameters(self):
        return _behind("block", self.block.parameters)

    @property
    def gradients(self):
        return _behind("block", self.block.gradients)


def _same_width(y, x):
    """Return y, the output of a block, if it can be added to its input x."""
    if y.shape[-2:] != x.shape[-2:]:
        raise ValueError(f"block: got an output of shape {y.shape}, expected (..., {x.shape[-2]}, {x.shape[-1]})")
    return y


def _identity_or(before, like):
    return np.eye(like.shape[-1], dtype=like.dtype) if before is None else before


def _side_by_side(a, b):
    lead = np.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return np.concatenate([np.broadcast_to(m, (*lead, m.shape[-1])) for m in (a, b)], axis=-1)


def _behind(name, arrays):
    return {f"{name}.{key}": value for key, value in arrays.items()}
