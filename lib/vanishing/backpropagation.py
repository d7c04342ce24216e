"""Layers with `backward` under `forward`, losses with their gradients, and a gradient check.

Conventions, for every layer:

* Inputs are rows: x has shape (..., batch, n). Leading axes are an ensemble of networks.
* `parameters` is a dict of plain arrays and `gradients` a dict with the same keys, so a training
  loop is the same for one layer and for a network, and updates in place::

      gradients = net.gradients
      for key, p in net.parameters.items():
          p -= 0.1 * gradients[key]

* The only state is `x`, the input of the last `forward`, which `backward` and `jacobian` use
  (and, where the derivative is found from it, the output `y`).
"""

from dataclasses import dataclass

import numpy as np

from . import activations
from ._validate import floating, lookup, positive_integer
from .initialization import initialize

__all__ = [
    "Activate", "Dense", "GradCheck", "Sequential", "central_difference", "d_mean_squared_error",
    "difference_bench", "gradcheck", "mean_squared_error", "mlp",
]  # fmt: skip


class Dense:
    """y = x W + b.

    Args:
        W: weights, shape (..., n_in, n_out).
        b: biases, shape (..., n_out); zeros if not given.
    """

    def __init__(self, W, b=None):
        W = floating(W, "W")
        b = np.zeros_like(W[..., 0, :]) if b is None else floating(b, "b")
        if W.ndim < 2 or b.shape[-1:] != W.shape[-1:]:
            raise ValueError(f"b: got shape {b.shape}, expected (..., n_out) for W of shape {W.shape}")
        self.parameters = {"W": W, "b": b}
        self.gradients = {}

    def forward(self, x):
        """y = x W + b: (..., batch, n_in) -> (..., batch, n_out)."""
        W, b = self.parameters["W"], self.parameters["b"]
        if np.ndim(x) < 2 or np.shape(x)[-1] != W.shape[-2]:
            raise ValueError(f"x: got shape {np.shape(x)}, expected (..., batch, {W.shape[-2]})")
        self.x = x
        y = x @ W
        if not b.any():  # as at the start: a pass over y saved
            return y.astype(np.result_type(y, b), copy=False)
        return np.add(y, b[..., None, :], out=y) if y.dtype == np.result_type(y, b) else y + b[..., None, :]

    def backward(self, dy, *, weights=True):
        """dC/dx = dy W^T, and the gradients dC/dW = x^T dy, dC/db = sum of dy over the batch.

        Args:
            dy: dC/dy, shape (..., batch, n_out).
            weights: False leaves `gradients` alone and saves a matrix product.

        Returns:
            dC/dx, shape (..., batch, n_in); if an ensemble shares x, one gradient for each member.
        """
        W, b = self.parameters["W"], self.parameters["b"]
        if weights:
            self.gradients["W"] = _sum_to(np.swapaxes(self.x, -1, -2) @ dy, W.shape)
            self.gradients["b"] = _sum_to(np.einsum("...bn->...n", dy), b.shape)  # twice as fast as dy.sum(axis=-2)
        return dy @ np.swapaxes(W, -1, -2)

    def jacobian(self, before=None):
        """dy/dx = W as (..., 1, n_in, n_out), the same for the whole batch.

        Every layer's `jacobian` has a row for each input, so that dC/dx = J dC/dy and the Jacobian
        of a network is the product from input to output. (The lesson on residual connections has a
        row for each output.) With `before`, (..., batch, k, n_in), it returns the product
        `before @ J`, the cheapest way it can.
        """
        W = self.parameters["W"][..., None, :, :]
        return W if before is None else before @ W


class Activate:
    """y = f(x), entry by entry.

    Args:
        activation: a name in `ACTIVATIONS` or an `Activation`.
    """

    def __init__(self, activation):
        self.activation = activations.activation(activation)
        self.parameters, self.gradients = {}, {}

    def forward(self, x):
        """y = f(x): (..., batch, n) -> the same shape."""
        self.x, self.y = x, self.activation.f(x)
        return self.y

    def backward(self, dy, *, weights=True):
        """dC/dx = dy * f'(x), same shape."""
        slope = self._slope()
        # In place, where the slope is an array of our own: at width 256 a new one doubles the time.
        ours = self.activation.slope_from_value and slope.shape == dy.shape and slope.dtype == dy.dtype
        return np.multiply(slope, dy, out=slope if ours else None)

    def _slope(self):
        """f'(x), from f(x) where that is faster."""
        return self.activation.df(self.x, self.y) if self.activation.slope_from_value else self.activation.df(self.x)

    def jacobian(self, before=None):
        """dy/dx = diag f'(x), shape (..., batch, n, n); see `Dense.jacobian`."""
        slope = self._slope()[..., None, :]
        return (np.eye(slope.shape[-1], dtype=slope.dtype) if before is None else before) * slope


class Sequential:
    """y = layers[-1](... layers[0](x)). It is itself a layer, so it nests.

    Its `parameters` carry the position in their keys: "0.W", or "0.0.W" when nested.
    """

    def __init__(self, layers):
        self.layers = list(layers)

    def forward(self, x):
        """(..., batch, n_in) -> (..., batch, n_out)."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dy, *, weights=True):
        """The chain rule: each layer turns dC/dy into dC/dx, last layer first."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy, weights=weights)
        return dy

    def jacobian(self, before=None):
        """The product of the layers' Jacobians, (..., batch, n_in, n_out); see `Dense.jacobian`."""
        for layer in self.layers:
            before = layer.jacobian(before)
        return before

    @property
    def parameters(self):
        return {f"{i}.{k}": p for i, layer in enumerate(self.layers) for k, p in layer.parameters.items()}

    @property
    def gradients(self):
        return {f"{i}.{k}": g for i, layer in enumerate(self.layers) for k, g in layer.gradients.items()}


def _sum_to(gradient, shape):
    """Sum over the leading axes along which a parameter of `shape` was broadcast."""
    if gradient.shape == shape:  # a sum over no axes would be a copy
        return gradient
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    shared = tuple(i for i, n in enumerate(shape) if n == 1 and gradient.shape[i] > 1)
    return gradient.sum(axis=shared, keepdims=True)


def mlp(
    widths, *, activation, init, rng, gain=1.0, output_activation=None, dtype=float, size=(), norm=None, residual=None
):
    """A multilayer perceptron: x -> f(x W + b) in each hidden block, x W + b in the last.

    With `norm` a hidden block is f(norm(x W + b)); with `residual` it is x + scale f(...) wherever
    it has as many outputs as inputs.

    Args:
        widths: number of inputs, of units in each hidden block, and of outputs.
        activation: f, a name or an `Activation`.
        init: scheme of `initialize` for the weights; biases are 0.
        rng: numpy Generator.
        gain: as in `initialize`: a number, or an array that broadcasts to `size`.
        output_activation: activation of the last block; None gives logits.
        dtype: floating dtype of the parameters.
        size: leading axes of every parameter: an ensemble of independent networks.
        norm: a name in `NORMALIZATIONS`, or None.
        residual: scale of the branches, a number or an array that broadcasts to `size`; "learn"
            for parameters that start at 0; or None.

    Returns:
        Sequential. `net.layers` are the blocks, one for each weight matrix:
        `len(net.layers) == len(widths) - 1` is the depth.

    Raises:
        ValueError: `norm` without a hidden block, or `residual` where none has equal widths.
    """
    from . import normalization, residuals  # both import this module

    widths = [positive_integer(n, "widths") for n in widths]
    if len(widths) < 2:
        raise ValueError(f"widths: got {widths}, expected at least the inputs and the outputs")
    if norm is not None and len(widths) < 3:
        raise ValueError(f"norm: got {norm!r} for widths {widths}, expected a hidden block to apply it in")
    if residual is not None and not any(a == b for a, b in zip(widths[:-2], widths[1:-1])):
        raise ValueError(f"residual: got widths {widths}, expected a hidden block with as many outputs as inputs")
    denses = [
        Dense(initialize(init, n_in, n_out, rng=rng, size=size, gain=gain, dtype=dtype))
        for n_in, n_out in zip(widths[:-1], widths[1:], strict=True)
    ]
    hidden = []
    for dense, n_in, n_out in zip(denses[:-1], widths[:-2], widths[1:-1]):
        norms = [] if norm is None else [normalization.normalization(norm, n_out, dtype=dtype, size=size)]
        block = Sequential([dense, *norms, Activate(activation)])
        skip = residual is not None and n_in == n_out
        hidden.append(residuals.residual(residual, block, size=size) if skip else block)
    last = denses[-1] if output_activation is None else Sequential([denses[-1], Activate(output_activation)])
    return Sequential([*hidden, last])


def mean_squared_error(y, target):
    """C = mean of (y - target)^2 over batch and units: (..., batch, n) -> (...)."""
    return ((floating(y, "y") - target) ** 2).mean(axis=(-2, -1))


def d_mean_squared_error(y, target):
    """dC/dy = 2 (y - target) / (batch n), the shape of y."""
    y = floating(y, "y")
    return 2 * (y - target) / (y.shape[-2] * y.shape[-1])


# Checking a gradient ---------------------------------------------------------------------------


def central_difference(f, x, h):
    """df/dx = (f(x + h) - f(x - h)) / 2h, entry by entry, error O(h^2) and rounding eps |f| / h.

    Args:
        f: array of the shape of x -> number.
        x: where, an array of floats of any shape. It is left alone.
        h: the step.

    Returns:
        Array of the shape of x.
    """
    slope = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += h
        down[i] -= h
        slope[i] = (f(up) - f(down)) / (2 * h)
    return slope


def difference_bench(log10_steps=tuple(-16 + k / 4 for k in range(65)), log10_distances=range(-6, 1), points=101):
    """Relative errors of numeric derivatives, for the lesson's explorable.

    The function is f(w) = exp(sin w) + max(0, w - k): smooth, with a kink k at a distance to the
    right of w. Its derivative at w is exp(sin w) cos w, and the error is that of the numeric one.

        forward  (f(w + h) - f(w)) / h
        central  (f(w + h) - f(w - h)) / 2h
        complex  Im f(w + ih) / h

    Args:
        log10_steps: log10 h.
        log10_distances: log10 (k - w).
        points: number of w, from 0.5 to 1, over which the median is taken.

    Returns:
        For each formula, precision ("float32", "float64") and distance a dict of "formula",
        "precision", "distance", "steps" and "errors": the last three as log10. An error below
        1e-17, or of 0, is given as -17.
    """
    numeric = {
        "forward": lambda f, w, h: (f(w + h) - f(w)) / h,
        "central": lambda f, w, h: (f(w + h) - f(w - h)) / (2 * h),
        "complex": lambda f, w, h: f(w + 1j * h).imag / h,
    }
    rows = []
    for precision in (np.float32, np.float64):
        w = np.linspace(0.5, 1, points).astype(precision)[:, None]
        h = (10.0 ** np.asarray(log10_steps)).astype(precision)
        exact = np.exp(np.sin(w.astype(float))) * np.cos(w.astype(float))
        for distance in log10_distances:
            k = w + precision(10.0**distance)

            def f(v, k=k):
                return np.exp(np.sin(v)) + activations.relu(v - k)

            for formula, difference in numeric.items():
                got = difference(f, w, h).astype(float)
                error = np.median(np.abs(got - exact) / np.maximum(np.abs(got), exact), axis=0)
                rows.append(
                    {
                        "formula": formula,
                        "precision": precision.__name__,
                        "distance": int(distance),
                        "steps": list(log10_steps),
                        "errors": np.log10(np.maximum(error, 1e-17)).round(3).tolist(),
                    }
                )
    return rows


@dataclass(frozen=True, repr=False)
class GradCheck:
    """Analytic and numeric gradient side by side; printing it shows the worst entries first."""

    analytic: np.ndarray
    numeric: np.ndarray
    error: np.ndarray
    rtol: float
    method: str

    @property
    def max_error(self):
        return float(self.error.max(initial=0.0))

    @property
    def ok(self):
        return self.max_error <= self.rtol

    def __repr__(self, rows=5):
        verdict = "ok" if self.ok else "WRONG"
        lines = [
            f"gradcheck {verdict}: {self.error.size} entries, method {self.method}",
            f"worst relative error {self.max_error:.1e}, tolerance {self.rtol:.1e}",
            f"{'entry':>12} {'analytic':>16} {'numeric':>16} {'error':>9}",
        ]
        for i in np.argsort(-self.error, axis=None, kind="stable")[:rows]:
            entry = str(tuple(int(k) for k in np.unravel_index(i, self.error.shape)))
            lines.append(
                f"{entry:>12} {self.analytic.flat[i]:>16.8e} {self.numeric.flat[i]:>16.8e} {self.error.flat[i]:>9.1e}"
            )
        return "\n".join(lines)


def gradcheck(f, gradient, x, *, method="central", step=None, rtol=1e-6):
    """Compare a gradient with differences of f, entry by entry, in float64.

    * "central": (f(x + h) - f(x - h)) / 2h, error O(h^2); h = eps^(1/3) max(1, |x|) balances it
      against the rounding error eps |f| / h.
    * "complex": Im f(x + ih) / h, error O(h^2) and no subtraction, so h = 1e-20 is exact to
      rounding. f must be analytic and accept complex arrays. Source: Squire & Trapp (1998).

    The error of an entry is |analytic - numeric| / max(|analytic|, |numeric|); differences
    that the rounding of f explains are not counted.

    Args:
        f: array of the shape of x -> number.
        gradient: df/dx as an array of the shape of x, or a function x -> such an array.
        x: where to compare, any shape.
        method: "central" or "complex".
        step: h; the default depends on the method.
        rtol: largest relative error that counts as equal.

    Returns:
        GradCheck, with `.ok`, `.max_error`, and a table as its text.

    Raises:
        ValueError: unknown method, or a gradient of another shape than x.
        TypeError: f is not scalar, or drops the imaginary part in method "complex".
    """
    lookup("method", method, {"central": None, "complex": None})
    x = np.array(x, dtype=float)
    analytic = np.asarray(gradient(x.copy()) if callable(gradient) else gradient, dtype=float)
    if analytic.shape != x.shape:
        raise ValueError(f"gradient: got shape {analytic.shape}, expected {x.shape}, the shape of x")
    eps = np.finfo(float).eps

    def value(index, change):
        moved = x.astype(type(change))  # a copy, so f may keep what it is given
        moved[index] += change
        y = np.asarray(f(moved))
        if y.size != 1:
            raise TypeError(f"f: got a result of shape {y.shape}, expected a number")
        if method == "complex" and not np.iscomplexobj(y):
            raise TypeError("f: got a real result for a complex argument, expected complex; use method='central'")
        return y.item()

    numeric, noise = np.zeros_like(x), np.zeros_like(x)
    for i in np.ndindex(x.shape):
        if method == "complex":
            h = 1e-20 if step is None else step
            numeric[i] = value(i, 1j * h).imag / h
        else:
            h = eps ** (1 / 3) * max(1.0, abs(x[i])) if step is None else step
            up, down = value(i, h), value(i, -h)
            numeric[i] = (up - down) / (2 * h)
            noise[i] = 10 * eps * max(abs(up), abs(down)) / h
    if method == "complex":
        noise[...] = 10 * eps * np.abs(numeric).max(initial=0.0)

    scale = np.maximum(np.abs(analytic), np.abs(numeric))
    excess = np.maximum(np.abs(analytic - numeric) - noise, 0)
    error = np.divide(excess, scale, out=np.zeros_like(x), where=excess != 0)
    return GradCheck(analytic, numeric, np.where(np.isnan(excess), np.inf, error), rtol, method)
