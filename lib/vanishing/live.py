"""The live lab: train a network on digits and watch its gradients as it learns.

`train` does the work. It is a generator of records, it knows nothing of widgets, and it serves a
notebook, a test or a recorded run alike:

    for record in train(Settings(activation="tanh"), rng=np.random.default_rng(0)):
        print(record)

`panel` draws its records and has the controls around it.
"""

import math
from dataclasses import dataclass

import numpy as np

from . import adam, clipping
from ._validate import generator, lookup, positive_integer
from .activations import ACTIVATIONS, largest_slope
from .backpropagation import Activate, Dense, mlp
from .data import digits
from .initialization import SCHEMES
from .mini_batch import batches
from .normalization import NORMALIZATIONS, set_training
from .softmax import cross_entropy, d_cross_entropy

__all__ = ["Record", "Settings", "recorded", "train"]

BATCH = 64  # images in a step
EVERY = 10  # steps between two records

OPTIMIZERS = {
    "SGD": adam.SGD,
    "momentum": lambda rate: adam.SGD(rate, momentum=0.9),
    "AdaGrad": adam.AdaGrad,
    "RMSProp": adam.RMSProp,
    "Adam": adam.Adam,
    "AdamW": adam.AdamW,
    "AMSGrad": adam.AMSGrad,
}
# What `mlp` takes as its scale of the branch, by the number of hidden layers.
RESIDUALS = {
    "none": lambda depth: None,
    "x + f(x)": lambda depth: 1.0,
    "x + f(x) / sqrt(depth)": lambda depth: depth**-0.5,
    "x + a f(x), a learned from 0": lambda depth: "learn",
}
# (gradients, weights, limit) -> clipped gradients
CLIPS = {
    "none": lambda g, p, limit: g,
    "norm": lambda g, p, limit: clipping.clip_by_norm(g, limit)[0],
    "value": lambda g, p, limit: clipping.clip_by_value(g, limit)[0],
    "adaptive": lambda g, p, limit: clipping.clip_adaptive(g, p, limit)[0],
}
MENUS = {
    "activation": ACTIVATIONS,
    "init": {name: name for name in SCHEMES if name != "gaussian"},  # another name of "normal"
    "norm": {"none": None} | {name: name for name in NORMALIZATIONS},
    "residual": RESIDUALS,
    "optimizer": OPTIMIZERS,
    "clip": CLIPS,
}


@dataclass(frozen=True)
class Settings:
    """What a run is made of. The defaults are a network that does not learn.

    Attributes:
        depth: number of hidden layers, at least 2.
        width: units in each hidden layer; a multiple of 4 for the norm "group".
        activation, init, norm, residual, optimizer, clip: a name in `MENUS`.
        gain: factor of the initial weights.
        rate: learning rate.
        limit: of clipping.
        steps: number of updates, each on 64 images.

    Raises:
        ValueError, TypeError: a setting that no run can have; the message names it.
    """

    depth: int = 12
    width: int = 32
    activation: str = "sigmoid"
    init: str = "glorot_normal"
    gain: float = 1.0
    norm: str = "none"
    residual: str = "none"
    optimizer: str = "SGD"
    rate: float = 0.1
    clip: str = "none"
    limit: float = 1.0
    steps: int = 500

    def __post_init__(self):
        for name in ("depth", "width", "steps"):
            positive_integer(getattr(self, name), name)
        if self.depth < 2:
            raise ValueError(f"depth: got {self.depth}, expected at least 2 hidden layers")
        for name, known in MENUS.items():
            lookup(name, getattr(self, name), known)
        for name in ("gain", "rate", "limit"):
            value = getattr(self, name)
            if not (0 < value < math.inf):
                raise ValueError(f"{name}: got {value}, expected a number above 0")


@dataclass(frozen=True)
class Record:
    """What was seen at one step. Layer 1 is next to the input; the last one gives the logits.

    Attributes:
        step: number of this update, from 1.
        loss: cross-entropy of its batch, before the update.
        accuracy: share of the held-out digits that are right, after the update.
        gradient: norm of dC/dW before clipping, for each of the depth + 1 layers.
        saturated: for each hidden layer the share of its units, over the images of the batch, whose
            slope is below a tenth of the activation's largest slope.
        update: |change of W| / |W| by this update, for each layer; nan where W is 0.
        diverged: whether the loss or a gradient is inf or nan. Then no update was made, and it is
            the last record.
    """

    step: int
    loss: float
    accuracy: float
    gradient: np.ndarray
    saturated: np.ndarray
    update: np.ndarray
    diverged: bool = False

    def __str__(self):
        """The numbers in a few sentences, for a reader who does not see the figure."""
        if self.diverged:
            return f"Step {self.step}: the loss or a gradient is inf or nan."
        return (
            f"Step {self.step}: loss {self.loss:.3g}, {100 * self.accuracy:.0f} % of the held-out digits are right. "
            f"Norm of the gradient: {self.gradient[0]:.1e} in layer 1, {self.gradient[-1]:.1e} in layer "
            f"{len(self.gradient)}. Saturated units: {100 * self.saturated.min():.0f} to "
            f"{100 * self.saturated.max():.0f} % of a layer. Update to weight: {self.update[0]:.1e} in layer 1, "
            f"{self.update[-1]:.1e} in layer {len(self.update)}."
        )


def train(settings, *, rng, data=None):
    """Train a network on the digits; yield a `Record` at the first step, every tenth and the last.

    Args:
        settings: a `Settings`.
        rng: numpy Generator, for the split of the data, the weights and the order of the images.
        data: a `Digits` to use in place of vg.digits(rng=rng).

    Yields:
        Records. A run that diverges ends early, with a record that says so.
    """
    s, rng = settings, generator(rng)
    data = digits(rng=rng) if data is None else data
    net = mlp(
        [data.x_train.shape[-1], *[s.width] * s.depth, 10],
        activation=s.activation,
        init=s.init,
        gain=s.gain,
        rng=rng,
        norm=MENUS["norm"][s.norm],
        residual=RESIDUALS[s.residual](s.depth),
    )
    optimizer = OPTIMIZERS[s.optimizer](s.rate)
    denses, hidden = list(_inside(net, Dense)), list(_inside(net, Activate))
    flat = 0.1 * largest_slope(ACTIVATIONS[s.activation])

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a run that diverges says so in its record
    def update(step, i, look):
        """One update on the images i; its record, if it is wanted or the last one."""
        logits = net.forward(data.x_train[i])
        loss = cross_entropy(logits, data.y_train[i])
        net.backward(d_cross_entropy(logits, data.y_train[i]))
        parameters, gradients = net.parameters, net.gradients
        diverged = not (np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients.values()))
        wanted = look or diverged
        if wanted:
            gradient = [np.linalg.norm(d.gradients["W"]) for d in denses]
            saturated = [np.mean(np.abs(a.activation.df(a.x)) < flat) for a in hidden]
            before = [d.parameters["W"].copy() for d in denses]
        if not diverged:
            optimizer.step(parameters, CLIPS[s.clip](gradients, parameters, s.limit))
        if not wanted:
            return None
        change = [np.linalg.norm(d.parameters["W"] - W) / np.linalg.norm(W) for d, W in zip(denses, before)]
        set_training(net, False)
        right = net.forward(data.x_test).argmax(axis=-1) == data.y_test
        set_training(net, True)
        layers = np.array(gradient), np.array(saturated), np.array(change)
        return Record(step, float(loss), float(right.mean()), *layers, diverged)

    def endless():
        while True:
            yield from batches(len(data.x_train), BATCH, rng=rng, drop_last=True)

    for step, i in zip(range(1, s.steps + 1), endless()):
        record = update(step, i, look=step == 1 or step % EVERY == 0 or step == s.steps)
        if record:
            yield record
            if record.diverged:
                return


def recorded(runs, *, seed=0):
    """Whole runs as rows of data, for a page that has no kernel to train with.

    Args:
        runs: {name: Settings}.
        seed: as in `bench`: the panel shows the same numbers.

    Returns:
        A dict for each run and each of its records: the name as "run", and the fields of `Record`,
        with lists for arrays, rounded to three digits. What is nan or inf is None.
    """
    data, rows = digits(rng=np.random.default_rng(seed)), []
    for name, settings in runs.items():
        for record in train(settings, rng=np.random.default_rng(seed), data=data):
            rows.append({"run": name} | {field: _plain(value) for field, value in vars(record).items()})
    return rows


def _plain(value):
    """A number of JSON, or a list of them."""
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    if isinstance(value, float):
        return float(f"{value:.3g}") if math.isfinite(value) else None
    return value


def _inside(layer, kind):
    """The layers of this kind in a network, in the order of the forward pass."""
    if isinstance(layer, kind):
        yield layer
    for part in getattr(layer, "layers", [layer.block] if hasattr(layer, "block") else []):
        yield from _inside(part, kind)
