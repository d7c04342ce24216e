"""The live lab: train a network on digits and watch its gradients as it learns.

`train` does the work. It is a generator of records, it knows nothing of widgets, and it serves a
notebook, a test or a recorded run alike:

    for record in train(Settings(activation="tanh"), rng=np.random.default_rng(0)):
        print(record)

`bench` shows the panel around it, for a running kernel. While it trains, the panel hands the kernel
back several times a second, so that Stop and other cells get their turn. No thread and no asyncio
task does that: Colab does not show what a thread changes, and ipykernel 7 does not run such tasks
between cells. The browser is the clock. The panel trains for a moment, draws, and changes `ping`;
the browser copies ping to `pong` (a `jsdlink`); that change is an event like any click, and its
callback trains for the next moment. A click on Stop waits in the same queue, behind one moment.
"""

import base64
import io
import math
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from html import escape

import numpy as np

from . import adam, clipping
from ._validate import generator, lookup, positive_integer
from .activations import ACTIVATIONS
from .backpropagation import Activate, Dense, cross_entropy, d_cross_entropy, mlp
from .data import digits
from .figures import COLORS
from .initialization import SCHEMES
from .mini_batch import batches
from .normalization import NORMALIZATIONS, set_training

__all__ = ["Bench", "Record", "Settings", "bench", "figure", "largest_slope", "recorded", "train"]

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
        gradient: norm of dL/dW before clipping, for each of the depth + 1 layers.
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
    flat = 0.1 * largest_slope(s.activation)

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


def largest_slope(activation):
    """max |f'(z)| on -20 ... 20, of an activation in `ACTIVATIONS`, by name."""
    return np.abs(ACTIVATIONS[activation].df(np.linspace(-20, 20, 40001))).max()


def _inside(layer, kind):
    """The layers of this kind in a network, in the order of the forward pass."""
    if isinstance(layer, kind):
        yield layer
    for part in getattr(layer, "layers", [layer.block] if hasattr(layer, "block") else []):
        yield from _inside(part, kind)


def figure(records, previous=()):
    """Four panels: the loss so far, and layer by layer what the last record says.

    Args:
        records: list of `Record`, at least one.
        previous: those of another run, whose loss is drawn as a thin line.

    Returns:
        The matplotlib figure. A value of 0 has no place on a logarithmic axis and is left out.
    """
    from matplotlib.figure import Figure  # not pyplot: a figure that is redrawn must not be shown by it
    from matplotlib.ticker import LogLocator, NullLocator

    picture = Figure(figsize=(8.4, 5.2), dpi=100)
    place = {"left": 0.1, "right": 0.98, "bottom": 0.1, "top": 0.94, "wspace": 0.28, "hspace": 0.42}
    loss, gradient, saturated, update = picture.subplots(2, 2, gridspec_kw=place).flat
    first, last = records[0], records[-1]

    def positive(values):
        values = np.asarray(values, dtype=float)
        return np.where(np.isfinite(values) & (values > 0), values, np.nan)

    def curve(axes, run, **look):
        axes.plot([r.step for r in run], positive([r.loss for r in run]), **look)

    if previous:
        curve(loss, previous, color="gray", linewidth=0.8, label="run before")
    curve(loss, records, color=COLORS[0], marker="o" if len(records) == 1 else None, label="this run")
    loss.axhline(math.log(10), color="black", linestyle=":", linewidth=1, label="guessing")
    loss.set(title=f"Loss; {100 * last.accuracy:.0f} % of held-out digits right", xlabel="step", ylabel="cross-entropy")

    for axes, field, name, label in (
        (gradient, "gradient", "Gradient of the weights", "norm of dL/dW"),
        (saturated, "saturated", "Saturated: slope below 1/10 of the largest", "% of the layer's units"),
        (update, "update", "Update to weight", "|change of W| / |W|"),
    ):
        for record, look in (
            (first, {"color": "gray", "linestyle": "--", "linewidth": 1}),
            (last, {"color": COLORS[1]}),
        ):
            values = getattr(record, field)
            values = 100 * values if field == "saturated" else positive(values)
            axes.plot(
                np.arange(1, len(values) + 1), values, marker="o", markersize=3, label=f"step {record.step}", **look
            )
        axes.set(title=name, xlabel="layer, from the input", ylabel=label, xlim=(0.5, len(last.gradient) + 0.5))
    seen = [r.loss for r in records if np.isfinite(r.loss)]
    for axes in (loss, gradient, update):
        axes.set_yscale("log")
        # A picture that is drawn three times a second has few ticks, and none set as mathematics.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if axes is loss else (1,), numticks=6))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}" if value < 0.01 or value > 100 else f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    # Wide enough that a loss which does not fall looks like it.
    loss.set_ylim(min([0.1, *seen]) / 1.3, max([5, *seen]))
    saturated.set_ylim(-4, 104)
    for axes, corner in ((loss, "lower left"), (gradient, "best"), (saturated, "upper left"), (update, "best")):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc=corner)
    return picture


# The panel -------------------------------------------------------------------------------------

MOMENT = 0.15  # seconds of training between two looks at the browser
REDRAW = 0.3  # seconds between two pictures, at least

# setting: (description, what it does)
CONTROLS = {
    "depth": ("depth", "Number of hidden layers. The gradient is multiplied once by each of them."),
    "width": ("width", "Units in each hidden layer."),
    "activation": ("activation", "The function of each hidden unit."),
    "init": ("initialization", "How the weights are drawn at the start. Biases start at 0."),
    "gain": ("gain", "All initial weights are multiplied by it."),
    "norm": ("normalization", "Layer that standardizes z = x W + b before the activation."),
    "residual": ("residual", "Path around each hidden block f on which the gradient arrives unchanged."),
    "optimizer": (
        "optimizer",
        "What turns a gradient into a step. Rates for Adam are about a hundredth of those for SGD.",
    ),
    "rate": ("learning rate", "Size of a step."),
    "clip": (
        "clipping",
        "Bounds the gradient: its norm, each entry, or the part of each unit relative to its weights.",
    ),
    "limit": ("limit", "Bound for clipping; without clipping it does nothing."),
    "steps": ("steps", f"Number of updates, each on {BATCH} images."),
}
RANGES = {"depth": (2, 50, 1), "width": (8, 128, 8), "steps": (50, 5000, 50)}
DECADES = {"gain": (-1, 2), "rate": (-5, 1), "limit": (-3, 2)}


def bench(*, seed=0, **settings):
    """The live lab: a panel to choose a network, train it on digits and watch its gradients.

    It needs ipywidgets, 7.7.1 or later, and a running kernel: Jupyter, Colab or VS Code.

    Args:
        seed: of the random weights and of the order of the images, the same in every run.
        settings: what the controls show first, by the names of `Settings`, as activation="tanh".

    Returns:
        A `Bench`, which shows itself as the last line of a cell. Its `records` are those of the
        last run.

    Raises:
        ModuleNotFoundError: ipywidgets is missing.
        TypeError, ValueError: a setting that does not exist, or that its control cannot show.
    """
    unknown = settings.keys() - CONTROLS.keys()
    if unknown:
        raise TypeError(f"settings: got {', '.join(sorted(unknown))}, expected some of {', '.join(CONTROLS)}")
    return Bench(Settings(**settings), seed)


class Bench:
    """The panel of `bench`.

    Attributes:
        records, previous: lists of `Record`, of this run and of the one before.
        controls: the widgets by the names of `Settings`.
        error: the exception of the last callback that failed, or None. The panel shows it, too.
    """

    def __init__(self, settings, seed):
        try:
            import ipywidgets as w
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "vg.bench() needs ipywidgets, which is not installed: pip install 'ipywidgets>=7.7.1'. "
                "vg.live.train trains without it."
            ) from None
        self.first, self.seed = settings, seed
        self.turn = threading.RLock()  # JupyterLab with ipykernel 7 delivers events in two threads
        self.records, self.previous, self.error, self.run, self.drawn = [], [], None, None, 0.0
        self.controls = {name: _control(w, name, getattr(settings, name)) for name in CONTROLS}
        for name, value in asdict(settings).items():
            shown = self.controls[name].value
            if shown != value and not (name in DECADES and math.isclose(shown, value)):
                raise ValueError(f"{name}: got {value!r}, expected what its control can show")

        def button(description, tooltip, style, action, **more):
            made = w.Button(description=description, tooltip=tooltip, button_style=style, **more)
            made.on_click(self._safely(action))
            return made

        self.start = button("Run", "Start a new run with these settings", "success", self._start)
        self.stop = button("Stop", "Stop this run; the figure stays", "danger", self._stop, disabled=True)
        self.reset = button("Reset", "Back to the first settings, without any run", "", self._reset)
        self.progress = w.IntProgress(min=0, max=settings.steps, description="steps")
        self.message, self.picture, self.numbers = w.HTML(), w.HTML(), w.HTML()
        help = "".join(f"<dt><b>{escape(name)}</b></dt><dd>{escape(text)}</dd>" for name, text in CONTROLS.values())
        help = w.HTML(f"<details><summary>What the controls do</summary><dl>{help}</dl></details>")

        # The clock: see the top of this file.
        self.ping, self.pong = w.IntText(0), w.IntText(0)
        self.clock = w.jsdlink((self.ping, "value"), (self.pong, "value"))
        self.pong.observe(self._safely(self._echo), "value")

        names = list(CONTROLS)
        columns = [w.VBox([self.controls[name] for name in names[k : k + 4]]) for k in (0, 4, 8)]
        self.box = w.VBox(
            [
                w.HBox(columns, layout=w.Layout(flex_flow="row wrap")),
                w.HBox([self.start, self.stop, self.reset, self.progress], layout=w.Layout(flex_flow="row wrap")),
                self.message, self.picture, self.numbers, help,
            ]
        )  # fmt: skip
        # What is slow the first time is done here, so that the first Run is not.
        self.data = digits(rng=np.random.default_rng(seed))
        _png(list(train(Settings(steps=1), rng=np.random.default_rng(seed), data=self.data)))
        self._say("Press Run.")

    def _ipython_display_(self):
        from IPython.display import display

        display(self.box)

    @property
    def running(self):
        """Whether a run is under way."""
        return self.run is not None

    # Callbacks. ipywidgets would only log what goes wrong in them.

    def _safely(self, action):
        def callback(_):
            try:
                with self.turn:
                    action()
            except Exception as error:
                self.error = error
                self._end()
                text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
                self._say(f"{type(error).__name__}: {error}", alert=True, details=text)

        return callback

    def _start(self):
        settings = Settings(**{name: control.value for name, control in self.controls.items()})
        self._end()
        self.error = None
        if self.records:
            self.previous = self.records
        self.records, self.run = [], train(settings, rng=np.random.default_rng(self.seed), data=self.data)
        self.progress.max, self.drawn = settings.steps, 0.0
        self._enable(running=True)
        self._say(f"Training a network with {settings.depth} hidden layers.")
        self._moment()

    def _stop(self):
        if self.running:
            self._end()
            self._draw()
            self._say(f"Stopped at step {self.records[-1].step}.")

    def _reset(self):
        self._end()
        for name, value in asdict(self.first).items():
            self.controls[name].value = value
        self.records, self.previous, self.error = [], [], None
        self.progress.value, self.picture.value, self.numbers.value = 0, "", ""
        self._say("Press Run.")

    def _echo(self):
        if self.running and self.pong.value == self.ping.value:  # else of a ping from before Stop
            self._moment()

    def _moment(self):
        """Train for a moment and draw; then ask the browser for the next moment."""
        until = time.perf_counter() + MOMENT
        for record in self.run:
            self.records.append(record)
            if time.perf_counter() > until:
                break
        else:
            self._finish()
            return
        if time.perf_counter() - self.drawn > REDRAW:
            self._draw()
        self.ping.value += 1

    def _finish(self):
        self._end()
        self._draw()
        last = self.records[-1]
        if last.diverged:
            says = f"Diverged at step {last.step}: the loss or a gradient is inf or nan."
            self._say(f"{says} Try a smaller learning rate, a smaller gain, or clipping.", alert=True)
        else:
            self._say(f"Done: {last.step} steps.")

    def _end(self):
        self.run = None
        self._enable(running=False)

    def _enable(self, *, running):
        self.start.disabled, self.stop.disabled = running, not running
        for control in self.controls.values():
            control.disabled = running

    def _draw(self):
        last = self.records[-1]
        self.progress.value = last.step
        source = _png(self.records, self.previous)
        self.picture.value = (
            '<img style="max-width: 100%; height: auto" width="840" height="520" decoding="sync" '
            f'alt="{escape(str(last))}" src="data:image/png;base64,{source}">'
        )
        self.numbers.value = f"<p>{escape(str(last))}</p>"
        self.drawn = time.perf_counter()

    def _say(self, text, *, alert=False, details=""):
        role = 'role="alert" style="color: #B00020"' if alert else 'role="status"'
        folded = f"<details><summary>Where</summary><pre>{escape(details)}</pre></details>" if details else ""
        self.message.value = f"<p {role}>{escape(text)}</p>{folded}"


def _png(records, previous=()):
    """The figure as a PNG in base64."""
    file = io.BytesIO()
    figure(records, previous).savefig(file, format="png")
    return base64.b64encode(file.getvalue()).decode()


def _control(w, name, value):
    """The widget for one setting: a menu or a slider, so that no value outside of them can be chosen."""
    description, tip = CONTROLS[name]
    look = {"description": description, "style": {"description_width": "7.5em"}, "layout": w.Layout(width="21em")}
    if name in MENUS:
        control = w.Dropdown(options=list(MENUS[name]), value=value, **look)
    elif name in DECADES:
        low, high = DECADES[name]
        control = w.FloatLogSlider(min=low, max=high, step=0.05, value=value, readout_format=".3g", **look)
    else:
        low, high, step = RANGES[name]
        control = w.IntSlider(min=low, max=high, step=step, value=value, **look)
    # ipywidgets 8 has renamed it.
    setattr(control, "tooltip" if control.has_trait("tooltip") else "description_tooltip", tip)
    return control
