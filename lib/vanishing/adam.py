"""Optimizers, each with its update in its docstring, and the averages that they are made of.

Every optimizer has one method, which changes the parameters in place:

    optimizer = Adam(rate=1e-3)
    optimizer.step(net.parameters, net.gradients)

Forms and defaults are torch's. In the formulas g is the gradient, p the parameter, t = 1, 2, ... the
step; all state starts at 0 and is kept for each key. `rate` may be changed between steps. It is a
number, or an array with one rate for each network of an ensemble (the leading axes).

Weight decay adds weight_decay * p to g before anything else, except in AdamW.
"""

import numpy as np

from ._validate import floating

__all__ = [
    "SGD", "AMSGrad", "AdaGrad", "Adam", "AdamW", "RMSProp", "adam_step", "bias_correction_excess", "ema",
    "optimal_momentum", "signal_grid", "step_bound", "surface", "surface_paths",
]  # fmt: skip


class _Optimizer:
    """Checks, state and weight decay: what all optimizers share."""

    slots = 1  # arrays of state for each parameter

    def __init__(self, rate, weight_decay, **fractions):
        _at_least_0(rate=rate, weight_decay=weight_decay)
        for name, value in fractions.items():
            _fraction(name, value)
        self.rate, self.weight_decay = rate, weight_decay
        self.state, self.t = {}, 0

    def step(self, parameters, gradients):
        """Update every parameter in place.

        Args:
            parameters: dict of floating arrays.
            gradients: dict of arrays, same keys and shapes.

        Raises:
            ValueError: keys or shapes differ between the two, or from those of the last step.
            TypeError: a parameter is not a floating array.
        """
        _at_least_0(rate=self.rate)
        rates = self._check(parameters, gradients)
        if not self.state:
            self.state = {key: [np.zeros_like(p) for _ in range(self.slots)] for key, p in parameters.items()}
        self.t += 1
        for key, p in parameters.items():
            self._update(p, gradients[key], rates[key], *self.state[key])

    def _update(self, p, g, rate, *state):
        """Weight decay in the gradient; AdamW overrides it."""
        p -= rate * self._direction(g + self.weight_decay * p if self.weight_decay else g, *state)

    def _rate_for(self, p):
        """The rate with as many axes as p, in its precision."""
        rate = np.asarray(self.rate, dtype=p.dtype)
        if rate.ndim > p.ndim or any(r not in (1, n) for r, n in zip(rate.shape, p.shape)):
            raise ValueError(f"rate: got shape {rate.shape}, expected the leading axes of {p.shape}")
        return rate.reshape(rate.shape + (1,) * (p.ndim - rate.ndim)) if rate.ndim else rate

    def _check(self, parameters, gradients):
        """The rate for each parameter, if all is well."""
        if parameters.keys() != gradients.keys():
            raise ValueError(f"gradients: got keys {[*gradients]}, expected those of parameters, {[*parameters]}")
        if self.state and self.state.keys() != parameters.keys():
            raise ValueError(f"parameters: got keys {[*parameters]}, expected those of the last step, {[*self.state]}")
        for key, p in parameters.items():
            if not isinstance(p, np.ndarray) or p.dtype.kind != "f":
                raise TypeError(
                    f"parameters[{key!r}]: got {getattr(p, 'dtype', type(p).__name__)}, expected an array of floats"
                )
            if np.shape(gradients[key]) != p.shape:
                raise ValueError(f"gradients[{key!r}]: got shape {np.shape(gradients[key])}, expected {p.shape}")
            if self.state and self.state[key][0].shape != p.shape:
                last = self.state[key][0].shape
                raise ValueError(f"parameters[{key!r}]: got shape {p.shape}, expected that of the last step, {last}")
        return {key: self._rate_for(p) for key, p in parameters.items()}


class SGD(_Optimizer):
    """Gradient descent, with momentum mu:

        m = mu m + g
        p -= rate m            (nesterov: rate (g + mu m))

    With mu = 0 it is p -= rate g. In this form a constant gradient ends at steps of rate g / (1 - mu).

    Source: Polyak (1964); torch for Nesterov's form, in which p is the point looked ahead to.
    """

    def __init__(self, rate, momentum=0.0, nesterov=False, weight_decay=0.0):
        super().__init__(rate, weight_decay, momentum=momentum)
        if nesterov and momentum == 0:
            raise ValueError("nesterov: got momentum 0, expected momentum above 0")
        self.momentum, self.nesterov = momentum, nesterov

    def _direction(self, g, m):
        if self.momentum == 0:
            return g  # 0 * m would keep an inf or nan for ever
        m *= self.momentum
        m += g
        return g + self.momentum * m if self.nesterov else m


class AdaGrad(_Optimizer):
    """v += g^2;  p -= rate g / (sqrt(v) + eps).  Source: Duchi et al. (2011)."""

    def __init__(self, rate=0.01, eps=1e-10, weight_decay=0.0):
        super().__init__(rate, weight_decay)
        _at_least_0(eps=eps)
        self.eps = eps

    def _direction(self, g, v):
        v += g**2
        return g / (np.sqrt(v) + self.eps)


class RMSProp(_Optimizer):
    """v = beta v + (1 - beta) g^2;  p -= rate g / (sqrt(v) + eps).  Source: Tieleman & Hinton (2012)."""

    def __init__(self, rate=0.01, beta=0.99, eps=1e-8, weight_decay=0.0):
        super().__init__(rate, weight_decay, beta=beta)
        _at_least_0(eps=eps)
        self.beta, self.eps = beta, eps

    def _direction(self, g, v):
        v *= self.beta
        v += (1 - self.beta) * g**2
        return g / (np.sqrt(v) + self.eps)


class Adam(_Optimizer):
    """Averages of g and g^2, corrected for their start at 0:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        p -= rate m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    `bias_correction=False` leaves both divisions out: see `bias_correction_excess`.

    Source: Kingma & Ba (2015), algorithm 1.
    """

    slots = 2

    def __init__(self, rate=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, *, bias_correction=True):
        super().__init__(rate, weight_decay, beta1=beta1, beta2=beta2)
        _at_least_0(eps=eps)
        self.beta1, self.beta2, self.eps, self.bias_correction = beta1, beta2, eps, bias_correction

    def _direction(self, g, m, v, *highest):
        m *= self.beta1
        m += (1 - self.beta1) * g
        v *= self.beta2
        v += (1 - self.beta2) * g**2
        for v_max in highest:  # AMSGrad's
            v = np.maximum(v_max, v, out=v_max)
        c1, c2 = (1 - self.beta1**self.t, 1 - self.beta2**self.t) if self.bias_correction else (1, 1)
        return m / c1 / (np.sqrt(v) / c2**0.5 + self.eps)


class AdamW(Adam):
    """Adam with decoupled weight decay: p *= 1 - rate weight_decay, then Adam's step without decay.

    In torch's form; in the paper the decay is multiplied by a schedule, and not by the rate.

    Source: Loshchilov & Hutter (2019), algorithm 2.
    """

    def __init__(self, rate=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, *, bias_correction=True):
        super().__init__(rate, beta1, beta2, eps, weight_decay, bias_correction=bias_correction)

    def _update(self, p, g, rate, *state):
        p *= 1 - rate * self.weight_decay
        p -= rate * self._direction(g, *state)


class AMSGrad(Adam):
    """Adam with v replaced by the largest v so far, in the step: v_max = max(v_max, v).

    As in torch, the maximum is of the uncorrected v, and then corrected; the paper has no correction.

    Source: Reddi et al. (2018), algorithm 2.
    """

    slots = 3


def ema(x, beta, bias_correction=True, axis=0):
    """m_t = beta m_{t-1} + (1 - beta) x_t with m_0 = 0, divided by 1 - beta^t: a weighted average of x_1 ... x_t.

    Args:
        x: array; `axis` is time.
        beta: in [0, 1). The average reaches back about 1 / (1 - beta) steps.
        bias_correction: False leaves the division out: the average then starts near 0.

    Returns:
        Array of the shape of x.

    Source: Kingma & Ba (2015), section 3.
    """
    x = np.moveaxis(floating(x, "x"), axis, 0)
    _fraction("beta", beta)
    m, averages = 0.0, np.empty_like(x)
    for i, x_t in enumerate(x):
        m = beta * m + (1 - beta) * x_t
        averages[i] = m / (1 - beta ** (i + 1)) if bias_correction else m
    return np.moveaxis(averages, 0, axis)


def bias_correction_excess(beta1, beta2, t):
    """(1 - beta1^t) / sqrt(1 - beta2^t): how many times too large Adam's step t is without bias correction.

    With the defaults 3.16 at t = 1 and 6.57 at its peak t = 12. (eps is neglected.)

    Args:
        beta1, beta2: in [0, 1).
        t: step, a number or an array, at least 1.
    """
    _fraction("beta1", beta1)
    _fraction("beta2", beta2)
    t = floating(t, "t")
    if not np.all(t >= 1):
        raise ValueError(f"t: got {t}, expected steps of at least 1")
    return (1 - beta1**t) / np.sqrt(1 - beta2**t)


def adam_step(g, m, v, t, beta1=0.9, beta2=0.999, eps=1e-8):
    """One step of Adam as a function: what is to be subtracted, for a rate of 1, and the new averages.

    Args:
        g: gradient, a number or an array.
        m, v: averages of g and g^2 after step t - 1; both 0 before the first.
        t: step, from 1.
        beta1, beta2: in [0, 1).
        eps: at least 0.

    Returns:
        (m_hat / (sqrt(v_hat) + eps), m, v), with m_hat = m / (1 - beta1^t) and v_hat = v / (1 - beta2^t).

    Source: Kingma & Ba (2015), algorithm 1.
    """
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return m_hat / (np.sqrt(v_hat) + eps), m, v


def step_bound(beta1, beta2, t):
    """The largest |m_hat| / sqrt(v_hat) that any t gradients can give: Adam's step over its rate.

        sqrt(1 - beta2^t) / (1 - beta1^t) (1 - beta1) / sqrt(1 - beta2) sqrt((1 - r^t) / (1 - r)),  r = beta1^2 / beta2

    By the Cauchy-Schwarz inequality; reached by gradients that grow by beta2 / beta1 in each step. 7.27 for
    the defaults and large t.

    Args:
        beta1, beta2: in [0, 1), beta1^2 below beta2 (else there is no bound for large t).
        t: step, a number or an array, at least 1; np.inf is allowed.
    """
    _fraction("beta1", beta1)
    _fraction("beta2", beta2)
    if beta1**2 >= beta2:
        raise ValueError(f"beta1: got {beta1}, expected beta1^2 below beta2 = {beta2}")
    t = floating(t, "t")
    if not np.all(t >= 1):
        raise ValueError(f"t: got {t}, expected steps of at least 1")
    r = beta1**2 / beta2
    sparse = (1 - beta1) / np.sqrt(1 - beta2)
    return sparse * np.sqrt((1 - r**t) / (1 - r) * (1 - beta2**t)) / (1 - beta1**t)


def optimal_momentum(smallest, largest):
    """(rate, momentum) of `SGD` that shrink every direction of a quadratic fastest in the long run.

        rate = (2 / (sqrt(smallest) + sqrt(largest)))^2,  sqrt(momentum) = (sqrt(c) - 1) / (sqrt(c) + 1)

    with c = largest / smallest. The distance then shrinks by about sqrt(momentum) in each step.

    Args:
        smallest, largest: curvatures (eigenvalues of the Hessian), 0 < smallest <= largest.

    Source: Polyak (1964).
    """
    if not 0 < smallest <= largest:
        raise ValueError(f"smallest, largest: got {smallest} and {largest}, expected 0 < smallest <= largest")
    a, b = smallest**0.5, largest**0.5
    return (2 / (a + b)) ** 2, ((b - a) / (b + a)) ** 2


SURFACES = ("ravine", "ravine, turned", "saddle", "plateau")


def surface(name, x, y, condition):
    """A loss of two parameters, and its gradient: (value, d/dx, d/dy).

    With c = condition and q = x^2 + c y^2:

        ravine           q / 2
        ravine, turned   q / 2 of the coordinates turned by 45 degrees
        saddle           (c y^2 - x^2) / 2 + x^4 / 4, minima at x = -1 and 1
        plateau          1 - exp(-q / 2)

    Args:
        name: one of the four.
        x, y: numbers or arrays.
        condition: ratio of the curvatures at the minimum (saddle: at the saddle), at least 1.
    """
    if name not in SURFACES:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(SURFACES)}")
    if name == "saddle":
        return (condition * y**2 - x**2) / 2 + x**4 / 4, x**3 - x, condition * y
    if name == "ravine, turned":
        h = 0.5**0.5
        value, du, dv = surface("ravine", h * (x + y), h * (y - x), condition)
        return value, h * (du - dv), h * (du + dv)
    q = x**2 + condition * y**2
    if name == "ravine":
        return q / 2, x, condition * y
    return -np.expm1(-q / 2), x * np.exp(-q / 2), condition * y * np.exp(-q / 2)


def surface_paths(conditions=(1, 10, 100), log10_rates=(-3, -2.5, -2, -1.5, -1, -0.5, 0), steps=60):
    """Paths of five optimizers on the four surfaces, for each condition number and rate.

    They start where u = -2, v = 0.8 (u along the flat direction, v along the steep one), on the saddle at
    (0.001, 0.8). A path that leaves the square |x|, |y| <= 10 ends with its first point outside.

    Returns:
        A list of rows {"surface", "optimizer", "condition", "rate" (its log10), "t", "x", "y", "loss"}: t, x and y
        are lists, loss is the last value, None where the path has left.
    """
    makes = {
        "gradient descent": lambda rate: SGD(rate),
        "momentum 0.9": lambda rate: SGD(rate, 0.9),
        "AdaGrad": lambda rate: AdaGrad(rate),
        "RMSProp": lambda rate: RMSProp(rate),
        "Adam": lambda rate: Adam(rate),
    }
    pairs = [(c, r) for c in conditions for r in log10_rates]
    condition, log10_rate = np.array(pairs, float).T
    rows = []
    for name in SURFACES:
        start = np.array([0.001, 0.8] if name == "saddle" else [-2.0, 0.8])
        if name == "ravine, turned":
            start = np.array([start[0] - start[1], start[0] + start[1]]) * 0.5**0.5
        for optimizer_name, make in makes.items():
            p, optimizer = {"p": np.tile(start, (len(pairs), 1))}, make(10**log10_rate)
            path = [p["p"].copy()]
            with np.errstate(all="ignore"):
                for _ in range(steps):
                    _, dx, dy = surface(name, *p["p"].T, condition)
                    optimizer.step(p, {"p": np.stack([dx, dy], axis=1)})
                    path.append(p["p"].copy())
                path = np.array(path)  # (steps + 1, pairs, 2)
                inside = np.all(np.abs(path) <= 10, axis=2)
                loss = surface(name, *path[-1].T, condition)[0]
            for i, (c, r) in enumerate(pairs):
                stays = bool(inside[:, i].all())
                end = steps + 1 if stays else int(np.argmin(inside[:, i])) + 1
                x, y = path[:end, i].T.round(3).tolist()
                rows.append(
                    {"surface": name, "optimizer": optimizer_name, "condition": c, "rate": r, "t": list(range(end)),
                     "x": x, "y": y, "loss": float(f"{loss[i]:.4g}") if stays else None}
                )  # fmt: skip
    return rows


def signal_grid(*, rng, beta1s=(0.0, 0.5, 0.8, 0.9, 0.95, 0.98), beta2s=(0.9, 0.99, 0.999), steps=120):
    """Averages of a noisy gradient, as Adam keeps them, for each beta1 and beta2.

    The gradient is 1 plus standard normal noise for the first half of the steps, then -1 plus noise.

    Args:
        rng: numpy Generator.
        beta1s, beta2s: in [0, 1).
        steps: number of steps.

    Returns:
        A list of rows {"beta1", "beta2", "t", "g", "m", "v"}: the last four are lists over the steps; m and v are
        the averages of g and g^2 without bias correction.
    """
    t = np.arange(1, steps + 1)
    g = (np.where(t <= steps // 2, 1.0, -1.0) + rng.standard_normal(steps)).round(3)
    m = {b: ema(g, b, bias_correction=False).round(5).tolist() for b in beta1s}
    v = {b: ema(g**2, b, bias_correction=False).round(5).tolist() for b in beta2s}
    return [
        {"beta1": b1, "beta2": b2, "t": t.tolist(), "g": g.tolist(), "m": m[b1], "v": v[b2]}
        for b1 in beta1s for b2 in beta2s
    ]  # fmt: skip


def _at_least_0(**values):
    for name, value in values.items():
        if not np.all(np.asarray(value) >= 0):
            raise ValueError(f"{name}: got {value}, expected at least 0")


def _fraction(name, value):
    if not 0 <= value < 1:
        raise ValueError(f"{name}: got {value}, expected at least 0 and below 1")
