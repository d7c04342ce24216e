"""Recurrent cells with back-propagation through time, and the gradient at every step.

Conventions, on top of those of `backpropagation`:

* A sequence x has shape (..., batch, T, n_in); `forward` returns the hidden states h_1 ... h_T as
  (..., batch, T, n_hidden). Leading axes are an ensemble of networks.
* The gates lie side by side in one matrix: W (..., n_in, gates * n_hidden) takes the input,
  U (..., n_hidden, gates * n_hidden) the state, b (..., gates * n_hidden) is the bias.
* Inside, time comes first: `h[t]` is the state h_t, (..., batch, n_hidden), and `h[0]` the initial
  one. A step is one matrix product; the inputs of all steps, and each gradient, are one product.

Source: Werbos (1990) for back-propagation through time.
"""

from copy import copy

import numpy as np

from . import activations
from ._validate import floating, generator, lookup, positive_integer
from .backpropagation import _sum_to
from .chain_rule import _exponent, _log2_rms
from .initialization import SCHEMES, initialize

__all__ = [
    "GRU", "LSTM", "RNN", "back_through_time", "gate_multiplier", "gradient_through_time", "memory_grid", "radius_grid",
    "spectral_radius",
]  # fmt: skip


def spectral_radius(W):
    """rho(W) = max |eigenvalue|: (..., n, n) -> (...)."""
    W = floating(W, "W")
    if W.ndim < 2 or W.shape[-1] != W.shape[-2] or not np.all(np.isfinite(W)):
        raise ValueError(f"W: got shape {W.shape}, expected finite square matrices (..., n, n)")
    return np.abs(np.linalg.eigvals(W)).max(axis=-1)


def _recurrent_weights(scheme, n, *, rng, size, gain):
    """U (*size, n, n): a scheme of `initialize`, or `gain` times a matrix of spectral radius 1."""
    lookup("recurrent_init", scheme, dict.fromkeys(["identity", "spectral_radius", *SCHEMES]))
    if scheme in SCHEMES:
        return initialize(scheme, n, n, rng=rng, size=size, gain=gain)
    U = np.eye(n) if scheme == "identity" else initialize("gaussian", n, n, rng=rng, size=size)
    U = U / spectral_radius(U)[..., None, None] * np.asarray(gain, dtype=float)[..., None, None]
    return U + initialize("zeros", n, n, rng=rng, size=size, gain=gain)  # checks size and gain


def back_through_time(g, slopes, U):
    """g_(t-1) = (g_t phi'(z_t)) U^T, from the last step to the first: all T + 1 of them, g_0 first.

    Args:
        g: dC/dh_T, shape (..., n), where the loss sees the last state only.
        slopes: phi'(z_1) ... phi'(z_T), shape (T, ..., n).
        U: recurrent weights, h_(t-1) U, shape (n, n).

    Returns:
        dC/dh_t for t = 0 ... T, shape (T + 1, ..., n).

    Source: Werbos (1990).
    """
    gs = [g]
    for slope in reversed(slopes):
        gs.append((gs[-1] * slope) @ U.T)
    return np.array(gs[::-1])


def gate_multiplier(bias, radius, cell="LSTM"):
    """The spectral radius of a step of a gated cell, in the state 0 and without input.

        LSTM: dc_t/dc_(t-1) = sigma(b) I + U_c / 4            b: bias of the forget gate
        GRU:  dh_t/dh_(t-1) = u I + (1 - u) U_c / 2           u = sigma(b), b: bias of the update gate (z)

    All other biases are 0, so that the other gates are 1/2; U_c are the recurrent weights of the candidate. Exact
    where U_c has its eigenvalue of largest modulus on the positive axis, else an upper limit.

    Args:
        bias: b, number or array.
        radius: rho(U_c), number or array.
        cell: "LSTM" or "GRU".
    """
    keep = 1 / (1 + np.exp(-np.asarray(bias, float)))
    others = lookup("cell", cell, {"LSTM": 0.25, "GRU": (1 - keep) / 2})
    return keep + others * np.asarray(radius, float)


class _Recurrent:
    """What the cells share: the parameters, and the products before and after the loop over time."""

    gates = 1
    biases = ("b",)

    def __init__(
        self, n_in, n_hidden, *, rng, init="glorot_uniform", recurrent_init="orthogonal",
        gain=1.0, dtype=float, size=(),
    ):  # fmt: skip
        n_in, n = positive_integer(n_in, "n_in"), positive_integer(n_hidden, "n_hidden")
        W = [initialize(init, n_in, n, rng=rng, size=size) for _ in range(self.gates)]
        U = [_recurrent_weights(recurrent_init, n, rng=rng, size=size, gain=gain) for _ in range(self.gates)]
        W, U = (np.concatenate(M, axis=-1).astype(dtype) for M in (W, U))
        self.parameters = {"W": W, "U": U} | {key: np.zeros_like(W[..., 0, :]) for key in self.biases}
        self.gradients = {}
        self.n_hidden = n

    def _start(self, x, **initial):
        """x W + b for all steps, (T, ..., batch, gates n), and room for h_0 ... h_T (and c)."""
        W, b = self.parameters["W"], self.parameters["b"]
        x = floating(x, "x")
        if x.ndim < 3 or x.shape[-1] != W.shape[-2] or x.shape[-2] < 1:
            raise ValueError(f"x: got shape {x.shape}, expected (..., batch, T, {W.shape[-2]}) with T of at least 1")
        initial = {name: None if value is None else floating(value, name) for name, value in initial.items()}
        given = [value for value in initial.values() if value is not None]
        self.dtype = np.result_type(x, *given, *self.parameters.values())
        self.x = np.moveaxis(x, -2, 0)
        a = np.matmul(_rows(self.x), W, dtype=self.dtype)
        a += b[..., None, :]
        a = np.moveaxis(a.reshape(*a.shape[:-2], len(self.x), -1, a.shape[-1]), -3, 0)

        states = []
        for name, value in initial.items():
            state = _empty(len(a) + 1, (*a.shape[1:-1], self.n_hidden), self.dtype)
            _fill(state[0], 0 if value is None else value, name)
            states.append(state)
        return a, *states

    def backward(self, dy, *, weights=True):
        """Back-propagation through time: dC/dh_t = dy_t + what comes back from step t + 1.

        Args:
            dy: dC/dy of all hidden states, shape (..., batch, T, n_hidden).
            weights: False leaves `gradients` alone and saves the matrix products.

        Returns:
            dC/dx, shape (..., batch, T, n_in); if an ensemble shares x, one for each member. The
            gradients of the initial states stay in `d_initial`: (dC/dh_0,), and dC/dc_0 in an LSTM.
        """
        expected = _sequence(self.h[1:]).shape
        if np.shape(dy) != expected:
            raise ValueError(f"dy: got shape {np.shape(dy)}, expected {expected}")
        dy, state = np.moveaxis(floating(dy, "dy"), -2, 0), self._start_back()
        for t in reversed(range(len(dy))):
            np.add(state[0], dy[t], out=state[0])
            self._back(t, *state)
        self.d_initial = state

        da, dv = _rows(self.da), _rows(self.dv)  # of x W + b and of h U (+ c)
        if weights:
            self._set("W", np.swapaxes(_rows(self.x), -1, -2) @ da)
            self._set("U", np.swapaxes(_rows(self.h[:-1]), -1, -2) @ dv)
            for key, d in zip(self.biases, (da, dv)):
                self._set(key, np.einsum("...bn->...n", d))  # twice as fast as sum
        dx = da @ np.swapaxes(self.parameters["W"], -1, -2)
        return np.swapaxes(dx.reshape(*dx.shape[:-2], len(dy), -1, dx.shape[-1]), -2, -3)

    def _start_back(self):
        """Room for the gradients of the two products; zero gradients of the last state."""
        self.da = self.dv = _empty(len(self.a), self.a.shape[1:], self.dtype)
        self.U_T = np.swapaxes(self.parameters["U"], -1, -2).copy()  # contiguous, a faster product
        return (np.zeros(self.h.shape[1:], self.dtype),)

    def _set(self, key, gradient):
        self.gradients[key] = _sum_to(gradient, self.parameters[key].shape)

    def _gates(self, a):
        """(..., batch, gates n) -> (gates, ..., batch, n), a view: the gates one by one."""
        return np.moveaxis(a.reshape(*a.shape[:-1], self.gates, self.n_hidden), -2, 0)


class RNN(_Recurrent):
    """h_t = f(x_t W + b + h_(t-1) U), the simple recurrent network.

    Args:
        n_in, n_hidden: number of inputs and of hidden units.
        rng: numpy Generator.
        activation: f, a name or an `Activation`.
        init: scheme of `initialize` for W, at gain 1. Biases are 0.
        recurrent_init: scheme of `initialize` for U; or "identity" (with relu the IRNN of Le et
            al., 2015); or "spectral_radius", Gaussian weights scaled to radius 1.
        gain: factor on U, a number or an array that broadcasts to `size`. For "identity",
            "spectral_radius" and "orthogonal" it is the spectral radius of U.
        dtype: floating dtype of the parameters.
        size: leading axes of every parameter: an ensemble of independent networks.

    Source: Elman (1990).
    """

    def __init__(self, n_in, n_hidden, *, rng, activation="tanh", **kwargs):
        super().__init__(n_in, n_hidden, rng=rng, **kwargs)
        self.activation = activations.activation(activation)

    def forward(self, x, h0=None):
        """(..., batch, T, n_in), h0 (..., batch, n_hidden) or 0 -> h_1 ... h_T."""
        self.a, self.h = self._start(x, h0=h0)
        product = np.empty_like(self.a[0])
        for t, a in enumerate(self.a):
            a += np.matmul(self.h[t], self.parameters["U"], out=product)
            self.h[t + 1] = self.activation.f(a)
        return _sequence(self.h[1:])

    def _back(self, t, dh):
        """da = dh * f'(a), dh_(t-1) = da U^T; dh is overwritten."""
        np.multiply(dh, self.activation.df(self.a[t]), out=self.da[t])
        np.matmul(self.da[t], self.U_T, out=dh)

    def state_jacobians(self):
        """dh_t/dh_(t-1) = U diag f'(a_t), rows for h_(t-1), of the last forward.

        Returns:
            Array (T, ..., batch, n_hidden, n_hidden): factors for `log10_singular_values(list(J))`.
        """
        return self.parameters["U"][..., None, :, :] * self.activation.df(self.a)[..., None, :]

    def _forward_scaled(self, x):
        """`forward` with `a` and `h` times a power of two, different at each step.

        If f is homogeneous, f'(a) does not notice, and states neither overflow nor underflow.
        """
        self.a, self.h = self._start(x, h0=None)
        h, exponent = self.h[0], np.zeros((), int)  # the true state is h 2^exponent
        for a in self.a:
            target = _exponent(np.maximum(_log2_rms(h) + exponent, _log2_rms(a)))
            h = np.ldexp(h, (exponent - target)[..., None, None])
            a[...] = np.ldexp(a, -target[..., None, None]) + h @ self.parameters["U"]
            h, exponent = self.activation.f(a), target


class LSTM(_Recurrent):
    """Long short-term memory: gates i, f, o and candidate g, side by side as (i, f, g, o).

        i, f, o = sigmoid(x_t W + b + h_(t-1) U),  g = tanh(the same, its own columns)
        c_t = f c_(t-1) + i g,  h_t = o tanh(c_t)

    Args:
        n_in, n_hidden, rng, init, recurrent_init, gain, dtype, size: as in `RNN`, for each gate.
        forget_bias: initial bias of the forget gate, a number or an array that broadcasts to
            `size`; the others are 0. Source: Jozefowicz et al. (2015).

    Source: Hochreiter & Schmidhuber (1997); the forget gate, Gers et al. (2000).
    """

    gates = 4

    def __init__(self, n_in, n_hidden, *, rng, forget_bias=1.0, **kwargs):
        super().__init__(n_in, n_hidden, rng=rng, **kwargs)
        _, f, _, _ = self._gates(self.parameters["b"])
        _fill(np.moveaxis(f, -1, 0), forget_bias, "forget_bias")

    def forward(self, x, h0=None, c0=None):
        """(..., batch, T, n_in), h0 and c0 (..., batch, n_hidden) or 0 -> h_1 ... h_T."""
        self.a, self.h, self.c = self._start(x, h0=h0, c0=c0)
        self.tanh_c = np.empty_like(self.h[1:])
        gates = np.swapaxes(self._gates(self.a), 0, 1)  # (T, 4, ..., batch, n), a view
        self.values = np.empty(gates.shape, self.dtype)
        product = np.empty_like(self.a[0])
        for t, a in enumerate(self.a):
            a += np.matmul(self.h[t], self.parameters["U"], out=product)
            self.values[t] = gates[t]  # each gate contiguous: what follows is up to twice as fast
            i, f, g, o = self.values[t]  # overwritten by their values, all that backward needs
            _sigmoid(self.values[t, :2])
            np.tanh(g, out=g)
            _sigmoid(o)
            np.multiply(f, self.c[t], out=self.c[t + 1])
            c = np.add(self.c[t + 1], i * g, out=self.c[t + 1])
            np.multiply(o, np.tanh(c, out=self.tanh_c[t]), out=self.h[t + 1])
        return _sequence(self.h[1:])

    def _start_back(self):
        """The factors of `_back` for all steps at once; s' = s (1 - s) for a sigmoid and 1 - g^2 for tanh:

        slopes = (g i', c_(t-1) f', i g', tanh(c) o'),  dh_dc = o tanh'(c)
        """
        i, _, g, o = np.moveaxis(self.values, 1, 0)
        self.slopes = self.values * (1 - self.values)
        self.slopes[:, 0] *= g
        self.slopes[:, 1] *= self.c[:-1]
        self.slopes[:, 2] = i * (1 - g**2)
        self.slopes[:, 3] *= self.tanh_c
        self.dh_dc = o * (1 - self.tanh_c**2)
        state = *super()._start_back(), np.zeros(self.h.shape[1:], self.dtype)
        self.d_gates = np.swapaxes(self._gates(self.da), 0, 1)
        return state

    def _back(self, t, dh, dc):
        """dc += dh dh_dc, da = (dc, dc, dc, dh) slopes, dh_(t-1) = da U^T, dc_(t-1) = dc f; dh and dc are overwritten."""
        dc += dh * self.dh_dc[t]
        np.multiply(dc, self.slopes[t, :3], out=self.d_gates[t, :3])
        np.multiply(dh, self.slopes[t, 3], out=self.d_gates[t, 3])
        dc *= self.values[t, 1]
        np.matmul(self.da[t], self.U_T, out=dh)


class GRU(_Recurrent):
    """Gated recurrent unit: gates r, z and candidate n, side by side as (r, z, n).

        r, z = sigmoid(x_t W + b + h_(t-1) U + c)
        n = tanh(x_t W + b + r (h_(t-1) U + c)), their own columns each
        h_t = (1 - z) n + z h_(t-1)

    The reset gate acts after the product with U, as in torch, hence the second bias c.

    Args:
        n_in, n_hidden, rng, init, recurrent_init, gain, dtype, size: as in `RNN`, for each gate.

    Source: Cho et al. (2014).
    """

    gates = 3
    biases = ("b", "c")

    def forward(self, x, h0=None):
        """(..., batch, T, n_in), h0 (..., batch, n_hidden) or 0 -> h_1 ... h_T."""
        self.a, self.h = self._start(x, h0=h0)
        self.v = np.empty_like(self.a)
        c = self.parameters["c"][..., None, :]
        gates, v_gates = (np.swapaxes(self._gates(array), 0, 1) for array in (self.a, self.v))
        self.values = np.empty(gates.shape, self.dtype)
        for t, v in enumerate(self.v):
            np.matmul(self.h[t], self.parameters["U"], out=v)
            v += c
            self.values[t] = gates[t]
            r, z, n = self.values[t]  # overwritten by their values
            self.values[t, :2] += v_gates[t, :2]
            _sigmoid(self.values[t, :2])
            n += r * v_gates[t, 2]
            np.tanh(n, out=n)
            self.h[t + 1] = n + z * (self.h[t] - n)
        return _sequence(self.h[1:])

    def _start_back(self):
        """The factors of `_back` for all steps at once; s' = s (1 - s) for a sigmoid and 1 - n^2 for tanh:

        dn = (1 - z) n',  slopes = (dn v_n r', (h_(t-1) - n) z', dn)
        """
        _, z, n = np.moveaxis(self.values, 1, 0)
        dn = (1 - z) * (1 - n**2)
        self.slopes = self.values * (1 - self.values)
        self.slopes[:, 0] *= dn * self.v[..., 2 * self.n_hidden :]
        self.slopes[:, 1] *= self.h[:-1] - n
        self.slopes[:, 2] = dn
        state = super()._start_back()
        self.da = np.empty_like(self.dv)
        self.d_gates = np.swapaxes(self._gates(self.da), 0, 1)
        return state

    def _back(self, t, dh):
        """da = dh slopes, dv = da with dn r, dh_(t-1) = dh z + dv U^T; dh is overwritten."""
        r, z, _ = self.values[t]
        np.multiply(dh, self.slopes[t], out=self.d_gates[t])
        dv = self.dv[t]
        dv[...] = self.da[t]
        dv[..., 2 * self.n_hidden :] *= r
        dh *= z
        dh += dv @ self.U_T


@np.errstate(divide="ignore", over="ignore")  # as in gradient_flow
def gradient_through_time(cell, x, *, rng=None, dy_last=None):
    """Send a gradient from the last hidden state back through time, and measure it at every step.

    As in `gradient_flow` it is kept near 1 by powers of two, which is exact, and the exponent is
    carried. The hidden states are rescaled too if f is homogeneous (relu); otherwise not. In an
    LSTM dC/dh_(t-1) is a product of gates and U with dC/dc_t, so both decay at the same rate.

    Args:
        cell: RNN, LSTM or GRU. It stays as it is.
        x: input, shape (..., batch, T, n_in); the initial state is 0.
        rng: numpy Generator for dC/dh_T, N(0, 1); needed unless `dy_last` is given.
        dy_last: dC/dh_T, shape (..., batch, n_hidden), instead of a random one.

    Returns:
        log10 of the root mean square, over batch and units, of dC/dh_t for t = 0 ... T, shape
        (..., T + 1), float64.
    """
    if not isinstance(cell, _Recurrent):
        raise TypeError(f"cell: got {type(cell).__name__}, expected an RNN, LSTM or GRU")
    if dy_last is None:
        generator(rng)
    cell = copy(cell)
    homogeneous = isinstance(cell, RNN) and cell.activation.homogeneous
    (cell._forward_scaled if homogeneous else cell.forward)(x)
    state = cell._start_back()
    dh = state[0]
    _fill(dh, rng.standard_normal(dh.shape) if dy_last is None else dy_last, "dy_last")

    exponent = np.zeros((), int)  # the true gradients are state 2^exponent
    sizes = [_log2_rms(dh)]
    for t in reversed(range(len(cell.a))):
        shift = _exponent(np.max([_log2_rms(part) for part in state], axis=0))
        if np.any(np.abs(shift) >= 16):
            exponent = exponent + shift
            for part in state:
                np.ldexp(part, -shift[..., None, None], out=part)
        cell._back(t, *state)
        sizes.append(_log2_rms(dh) + exponent)
    return np.log10(2) * np.stack(sizes[::-1], axis=-1)


def _since_last(cell, x, rng, kept):
    """log10 of the gradient at `kept` steps before the last, over its size at the first of these: (..., len(kept))."""
    log10 = gradient_through_time(cell, x, rng=rng)[..., ::-1]
    return log10[..., kept] - log10[..., kept[:1]]


def memory_grid(
    *, rng, biases=(-1, 0, 1, 2, 3, 4, 5, 6), radii=(0.0, 0.5, 1.0), width=32, T=200, batch=4, networks=4, every=5
):
    """The gradient before the last step in an LSTM and a GRU, by bias of the gate that keeps the state.

    Inputs are N(0, 1), one number a step. The recurrent weights of each gate are orthogonal, times the radius.

    Args:
        rng: numpy Generator.
        biases: initial bias of the forget gate (LSTM) or of the update gate (GRU, z in the library).
        radii: spectral radius of the recurrent weights of each gate; 0 leaves the additive path alone.
        width, T, batch, networks: units, steps, sequences, and networks for each choice (the median is kept).
        every: the steps that are kept.

    Returns:
        A list of rows {"cell", "bias", "radius", "back", "log10"}: the last two are lists over steps before the
        last, from 1 on; "log10" is log10 of the gradient dC/dh_t over its size one step before the last.
    """
    kept = np.arange(1, T + 1, every)
    x = rng.standard_normal((batch, T, 1)).astype(np.float32)
    size = (len(biases), len(radii), networks)
    b = np.asarray(biases, np.float32)[:, None, None]
    gain = np.maximum(np.asarray(radii, float), 1e-12)[:, None]
    rows = []
    for name in ("LSTM", "GRU"):
        common = {"rng": rng, "gain": gain, "size": size, "dtype": np.float32}
        if name == "LSTM":
            cell = LSTM(1, width, forget_bias=b, **common)
        else:
            cell = GRU(1, width, **common)
            cell._gates(cell.parameters["b"])[1] = b[..., None]
        log10 = np.median(_since_last(cell, x, rng, kept), axis=-2)
        for i, j in np.ndindex(len(biases), len(radii)):
            rows.append(
                {"cell": name, "bias": biases[i], "radius": radii[j], "back": kept.tolist()}
                | {"log10": np.round(log10[i, j].astype(float), 2).tolist()}
            )
    return rows


def radius_grid(
    *, rng, names=("identity", "tanh", "relu", "sigmoid"), radii=(0.6, 0.7, 0.9, 1.0, 1.1, 1.3, 1.5, 2.0),
    width=32, T=100, batch=4, networks=4, every=2,
):  # fmt: skip
    """The gradient before the last step in a simple recurrent network, by activation, matrix and spectral radius.

    Three kinds of U for each radius: orthogonal; Gaussian; and "one-way", the radius on the diagonal and 1/2 above
    it, so that each unit also feeds the next one and the last feeds none. Inputs are N(0, 1), one number a step.

    Args:
        rng: numpy Generator.
        names: activation functions.
        radii: spectral radii of U.
        width, T, batch, networks: units, steps, sequences, and networks for each choice (the median is kept).
        every: the steps that are kept.

    Returns:
        A list of rows {"activation", "matrix", "radius", "norm", "back", "log10"}: "norm" is the median of the
        largest singular value of U, the last two are lists over steps before the last; "log10" is log10 of the
        gradient over its size at the last step.
    """
    kept = np.arange(0, T + 1, every)
    x = rng.standard_normal((batch, T, 1)).astype(np.float32)
    gain = np.asarray(radii, float)[:, None]
    rows = []
    for matrix in ("orthogonal", "Gaussian", "one-way"):
        scheme = {"orthogonal": "orthogonal", "Gaussian": "spectral_radius", "one-way": "identity"}[matrix]
        for name in names:
            cell = RNN(
                1, width, rng=rng, activation=name, recurrent_init=scheme, gain=gain, size=(len(radii), networks),
                dtype=np.float32,
            )  # fmt: skip
            if matrix == "one-way":
                cell.parameters["U"] += np.eye(width, k=1, dtype=np.float32) / 2
            norm = np.median(np.linalg.norm(cell.parameters["U"], 2, axis=(-2, -1)), axis=-1)
            log10 = np.median(_since_last(cell, x, rng, kept), axis=-2)
            for i, radius in enumerate(radii):
                rows.append(
                    {"activation": name, "matrix": matrix, "radius": radius, "norm": round(float(norm[i]), 3)}
                    | {"back": kept.tolist(), "log10": np.round(log10[i].astype(float), 2).tolist()}
                )
    return rows


def _empty(T, shape, dtype):
    """An array (T, ..., batch, n) whose memory is (..., T, batch, n), so that `_rows` is a view."""
    *lead, batch, n = shape
    return np.moveaxis(np.empty((*lead, T, batch, n), dtype), -3, 0)


def _rows(steps):
    """(T, ..., batch, n) -> (..., T * batch, n): all steps under each other, for one product."""
    steps = np.moveaxis(steps, 0, -3)
    return steps.reshape(*steps.shape[:-3], -1, steps.shape[-1])


def _sequence(steps):
    """(T, ..., batch, n) -> (..., batch, T, n): a view of what backward needs, so read-only."""
    steps = np.moveaxis(steps, 0, -2)
    steps.flags.writeable = False
    return steps


def _fill(array, value, name):
    try:
        array[...] = value
    except ValueError:
        raise ValueError(
            f"{name}: got shape {np.shape(value)}, expected one that broadcasts to {array.shape}"
        ) from None


def _sigmoid(z):
    """z <- 1 / (1 + exp(-z)), in place; exp may overflow, and the result is then 0 as it should be."""
    np.negative(z, out=z)
    with np.errstate(over="ignore"):
        np.exp(z, out=z)
    z += 1
    np.reciprocal(z, out=z)
