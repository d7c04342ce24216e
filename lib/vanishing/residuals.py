"""Skip connections: a path around a block, on which the gradient arrives without passing the block.

    Residual     y = x + scale block(x)
    Highway      y = t block(x) + (1 - t) x, with a learned gate t
    DenseSkip    y = (x, block(x)), side by side

A block is any layer, so a skip over several blocks is a Residual around a Sequential of them, and
the wrappers nest in each other and in Sequential. In the keys of `parameters` the block's stand
behind "block.": "block.W", or "block.0.W" if it is a Sequential.
"""

import numpy as np

from ._validate import floating, generator, lookup, positive_integer
from .backpropagation import Activate, Dense, Sequential, _sum_to
from .initialization import initialize

__all__ = [
    "SCALES", "DenseSkip", "Highway", "PostNorm", "PreNorm", "Residual", "autocorrelation", "path_gradients",
    "residual", "residual_grid", "residual_stack", "shatter_grid", "shattering",
]  # fmt: skip


class Residual:
    """y = x + scale block(x).

    Args:
        block: a layer with as many outputs as inputs.
        scale: of the branch, a number, or an array (...): one for each network of an ensemble.
        learn_scale: whether it is a parameter, "scale". SkipInit and ReZero start it at 0, where
            the layer is the identity.

    Source: He et al. (2016); De & Smith (2020) for SkipInit, Bachlechner et al. (2020) for ReZero.
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
        """dC/dx = dy + scale (dC/dx of the block); dC/dscale = sum of dy block(x) over batch and units.

        The first term arrives whatever the block does; the second can cancel it or outgrow it.
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
        """dC/dx = (1 - t) dy, plus t dy sent through the block, plus (block(x) - x) dy through the gate.

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
        """dC/dx = the first n entries of dy, plus the others sent through the block.

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


# Deep stacks of blocks --------------------------------------------------------------------------


def residual_stack(width, depth, *, rng, scale=1.0, activation="relu", norm=None, post=False, size=(), dtype=float):
    """h_l = h_{l-1} + scale f(h_{l-1}) W_l for l = 1 ... depth: the branch ends with its weights.

    With `norm` the branch is f(norm(h)) W (pre-norm), with `post` as well h_l = norm(h + scale f(h) W).
    The weights have the variance 1 / width, for relu 2 / width, so that the branch keeps the size.

    Args:
        width, depth: units in each layer, and blocks.
        rng: numpy Generator.
        scale: as in `residual`; or None for no skip at all: h_l = f(h_{l-1}) W_l.
        activation: f, a name or an `Activation`.
        norm: a name in `NORMALIZATIONS`, or None.
        post: whether the norm stands after the sum instead of in the branch.
        size, dtype: leading axes and floating dtype of the parameters.

    Returns:
        Sequential of `depth` blocks.

    Source: He et al. (2016b) for the order of the branch; Xiong et al. (2020) for pre- and post-norm.
    """
    from .normalization import normalization  # imports this module

    if post and norm is None:
        raise ValueError("post: got True without a norm, expected one that can stand after the sum")
    width, init = positive_integer(width, "width"), "he_normal" if activation == "relu" else "lecun_normal"
    blocks = []
    for _ in range(positive_integer(depth, "depth")):
        parts = [Activate(activation), Dense(initialize(init, width, width, rng=rng, size=size, dtype=dtype))]
        norms = [] if norm is None else [normalization(norm, width, dtype=dtype, size=size)]
        branch = Sequential(parts if post else norms + parts)
        block = branch if scale is None else residual(scale, branch, size=size)
        blocks.append(Sequential([block, *norms]) if post else block)
    return Sequential(blocks)


def path_gradients(blocks, dy):
    """The gradient at the input, sorted by the number j of branches that its paths went through.

    A `Residual` sends each path on twice: past its branch, and through it. So from the last block to
    the first G_j <- G_j + scale (dblock/dx) G_{j-1}, and the gradient is G_0 + G_1 + ... + G_L.

    Args:
        blocks: L `Residual` blocks with fixed numbers as scales, after a forward pass.
        dy: gradient at the output of the last, shape (..., batch, n).

    Returns:
        G, shape (L + 1, ..., batch, n).

    Source: Veit et al. (2016) for the paths.
    """
    paths = dy[None]
    for block in reversed(blocks):
        through = block.block.backward(block.fixed * paths, weights=False)
        past, none = paths, np.zeros_like(paths[:1])
        paths = np.concatenate([past, none])
        paths[1:] += through
    return paths


SCALES = ("plain", "1", "1/sqrt(L)", "1/L", "0", "pre-norm", "post-norm")


def residual_grid(*, rng, names=("relu", "tanh", "identity"), depths=(10, 40, 160), width=64, networks=2):
    """What the explorable of branch scales draws: sizes of activations and gradients by layer.

    Stacks as `residual_stack` makes them, without a skip ("plain"), with a fixed scale of the branch,
    or with scale 1 and a layer norm in the branch or after the sum; everywhere the same weights.

    Args:
        rng: numpy Generator.
        names: activation functions.
        depths: numbers of blocks L; 21 layers are kept, or all.
        width: units in each layer.
        networks: how many for each choice.

    Returns:
        A list of rows {"scale", "activation", "depth", "network", "layer", "forward", "backward"}: the
        last three are lists. "forward" is log10 of the size of the activations over that of the input,
        "backward" that of the gradient over its size at the last layer.
    """
    from .chain_rule import gradient_flow  # imports this module

    x, dy = rng.standard_normal((2, networks, 4, width)).astype(np.float32)
    rows, seed = [], generator(rng).integers(2**32)
    for name in names:
        for depth in depths:
            values = {"plain": None, "1": 1.0, "1/sqrt(L)": depth**-0.5, "1/L": 1 / depth, "0": 0.0}
            kept = np.unique(np.linspace(0, depth, 21).astype(int))
            for scale in SCALES:
                net = residual_stack(
                    width, depth, rng=np.random.default_rng(seed), scale=values.get(scale, 1.0), activation=name,
                    norm="layer" if scale.endswith("norm") else None, post=scale == "post-norm", size=(networks,),
                    dtype=np.float32,
                )  # fmt: skip
                flow = gradient_flow(net, x, dy=dy)
                forward = flow.log10_activation - flow.log10_activation[:, :1]
                backward = flow.log10_gradient - flow.log10_gradient[:, -1:]
                for k in range(networks):
                    sizes = (np.round(a[k, kept], 2).tolist() for a in (forward, backward))
                    rows.append(
                        {"scale": scale, "activation": name, "depth": depth, "network": k, "layer": kept.tolist()}
                        | dict(zip(("forward", "backward"), sizes))
                    )
    return rows


# Shattered gradients ----------------------------------------------------------------------------


def autocorrelation(g, lag=1):
    """Correlation of g with itself `lag` places on: sum of d_i d_{i+lag} over sum of d_i^2, d = g - mean(g).

    Args:
        g: values along a line, shape (..., points).
        lag: a whole number of at least 1.

    Returns:
        Shape (...). Near 1 for a smooth curve or a random walk ("brown noise"), near 0 for white noise.
    """
    d = floating(g, "g") - np.mean(g, axis=-1, keepdims=True)
    lag = positive_integer(lag, "lag")
    return (d[..., lag:] * d[..., :-lag]).sum(axis=-1) / (d**2).sum(axis=-1)


def shattering(c, depth, *, centered=False, scale=None):
    """Correlation of the signals and of the gradients of two inputs, over relu layers of infinite width.

    Without a skip c -> R(c) = (sqrt(1 - c^2) + c (pi - arccos c)) / pi, or if each unit is centered
    over many unrelated inputs (batch norm), c -> (R(c) - R(0)) / (1 - R(0)). Both are active with
    probability alpha(c) / 2, alpha(c) = 1 - arccos(c) / pi, so the correlation of the gradients takes the
    factor alpha(c).

    With a skip and batch norm in the branch, h + scale f(norm(h)) W, the variance of h after l blocks is
    v = 1 + l scale^2 (1 - 1 / pi), and the factor is (1 + scale^2 alpha(c) / v) / (1 + scale^2 / v).

    Args:
        c: correlation of the two inputs, a number.
        depth: number of layers.
        centered: whether each unit is centered.
        scale: of the branch of a residual network with batch norm; None for no skip.

    Returns:
        (signal, gradient): correlations after 0 ... depth layers, shape (depth + 1,) each. The gradient's
        is that at the input, of a network of so many layers.

    Raises:
        ValueError: a scale without `centered`.

    Source: derived in the lab of the chapter; Cho & Saul (2009) for R; Balduzzi et al. (2017) for the question.
    """
    if scale is not None and not centered:
        raise ValueError("scale: got a number without centered=True, expected batch norm in the branch")
    signal, gradient, v = [float(c)], [1.0], 1.0
    for _ in range(depth):
        c = min(signal[-1], 1.0)
        angle = np.arccos(c)
        k, m = (np.sqrt(1 - c**2) + c * (np.pi - angle)) / np.pi, 1 - angle / np.pi
        if scale is None:
            signal.append((k - 1 / np.pi) / (1 - 1 / np.pi) if centered else k)
            gradient.append(gradient[-1] * m)
        else:
            gradient.append(gradient[-1] * (1 + scale**2 * m / v) / (1 + scale**2 / v))
            more = scale**2 * (1 - 1 / np.pi)
            signal.append((v * c + scale**2 * (k - 1 / np.pi)) / (v + more))
            v += more
    return np.array(signal), np.array(gradient)


def shatter_grid(*, rng, depths=tuple(range(1, 50, 4)), width=128, points=256, every=2):
    """What the explorable of shattered gradients draws: dy/dx along x = -2 ... 2 for a scalar function y(x).

    A first layer x w + b with w and b from N(0, 1) makes `width` units of the number x. Then follow
    relu layers with weights of variance 2 / width, of three kinds: "plain"; "centered", a batch norm
    before each relu; "residual", the same around a skip. A random sum of the units is y. The statistics
    of batch norm are those of all `points` places, and then held, so that y is a function of x.

    Args:
        rng: numpy Generator.
        depths: numbers of relu layers.
        width: units in each layer.
        points: places x.
        every: of how many points one is kept for drawing.

    Returns:
        A list of rows {"kind", "depth", "x", "gradient", "correlation"}: x and the gradient, of mean square
        1, are lists; the correlation is that of the gradient at neighboring points, all of them.
    """
    from .normalization import set_training  # imports this module

    seed, x = generator(rng).integers(2**32), np.linspace(-2, 2, points)[:, None]
    rows = []
    for kind in ("plain", "centered", "residual"):
        one = np.random.default_rng(seed)
        w, b, readout = one.standard_normal((3, width)) / np.sqrt([[1], [1], [width]])
        net = residual_stack(
            width, max(depths), rng=one, scale=1.0 if kind == "residual" else None,
            norm=None if kind == "plain" else "batch",
        )  # fmt: skip
        h = x * w + b
        for block in net.layers:
            for layer in getattr(block, "block", block).layers:
                layer.momentum = 1.0  # the running statistics are then those of this batch
            block.forward(h)
            set_training(block, False)
            h = block.forward(h)
        for depth in depths:
            g = np.broadcast_to(readout, h.shape)
            for block in reversed(net.layers[:depth]):
                g = block.backward(g, weights=False)
            g = g @ w
            g = g / np.sqrt((g**2).mean())
            rows.append(
                {"kind": kind, "depth": depth, "x": np.round(x[::every, 0], 2).tolist(),
                 "gradient": np.round(g[::every], 2).tolist(), "correlation": round(float(autocorrelation(g)), 3)}
            )  # fmt: skip
    return rows
