"""The panel of the live lab: its controls, its pictures and its clock.

While it trains, the panel hands the kernel back several times a second, so that Stop and other cells
get their turn. No thread and no asyncio task does that: Colab does not show what a thread changes, and
ipykernel 7 does not run such tasks between cells. The browser is the clock. The panel trains for a
moment, draws, and changes `ping`; the browser copies ping to `pong` (a `jsdlink`); that change is an
event like any click, and its callback trains for the next moment. A click on Stop waits in the same
queue, behind one moment.
"""

import base64
import io
import math
import threading
import time
import traceback
from dataclasses import asdict
from html import escape

import numpy as np

from .data import digits
from .figures import COLORS
from .live import BATCH, MENUS, Settings, train

__all__ = ["Bench", "bench", "figure"]

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
        (gradient, "gradient", "Gradient of the weights", "norm of dC/dW"),
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
