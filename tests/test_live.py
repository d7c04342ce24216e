"""The live lab: the numbers of its records, every choice of every menu, and the panel in a real kernel.

It runs with ipywidgets 7 and 8 alike. What needs the built site has "page" in its name.
"""

import queue
import subprocess
import sys
import time

import numpy as np
import pytest

import vanishing as vg
from browser import drawn, in_browser, open_explorable
from vanishing import activations, live
from vanishing import panel as bench  # the module; a panel is what it makes
from vanishing.live import MENUS, Settings, train

SMALL = {"depth": 2, "width": 8, "steps": 3}


@pytest.fixture(scope="module")
def data():
    return vg.digits(rng=np.random.default_rng(0))


def run(data, seed=0, **settings):
    """All records of a run."""
    return list(train(Settings(**settings), rng=np.random.default_rng(seed), data=data))


# Records


@pytest.mark.parametrize("limit", [None, 0.05])
def test_records_are_what_plain_formulas_give(data, limit):
    """Two steps of SGD on a tanh network with two hidden layers, written out; with and without clipping."""
    clip = {} if limit is None else {"clip": "norm", "limit": limit}
    records = run(data, depth=2, width=8, activation="tanh", gain=3.0, rate=0.5, steps=2, **clip)
    rng = np.random.default_rng(0)
    W = [vg.initialize("glorot_normal", n, m, rng=rng, gain=3.0) for n, m in ((64, 8), (8, 8), (8, 10))]
    b = [np.zeros(8), np.zeros(8), np.zeros(10)]
    for step, i in zip((1, 2), vg.batches(len(data.x_train), 64, rng=rng, drop_last=True)):
        x, y = data.x_train[i], data.y_train[i]
        z1 = x @ W[0] + b[0]
        z2 = np.tanh(z1) @ W[1] + b[1]
        logits = np.tanh(z2) @ W[2] + b[2]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        d3 = (p - np.eye(10)[y]) / 64
        d2 = (d3 @ W[2].T) * (1 - np.tanh(z2) ** 2)
        d1 = (d2 @ W[1].T) * (1 - np.tanh(z1) ** 2)
        dW = [x.T @ d1, np.tanh(z1).T @ d2, np.tanh(z2).T @ d3]
        db = [d.sum(axis=0) for d in (d1, d2, d3)]
        whole = np.sqrt(sum((g**2).sum() for g in dW + db))
        scale = 1 if limit is None else min(1, limit / whole)
        assert limit is None or scale < 1
        record = records[step - 1]
        assert record.step == step
        assert np.isclose(record.loss, -np.log(p[range(64), y]).mean())
        assert np.allclose(record.gradient, [np.linalg.norm(g) for g in dW])
        assert np.allclose(record.saturated, [np.mean(1 - np.tanh(z) ** 2 < 0.1) for z in (z1, z2)])
        assert np.allclose(record.update, [0.5 * scale * np.linalg.norm(g) / np.linalg.norm(w) for g, w in zip(dW, W)])
        W = [w - 0.5 * scale * g for w, g in zip(W, dW)]
        b = [v - 0.5 * scale * g for v, g in zip(b, db)]
        test = np.tanh(np.tanh(data.x_test @ W[0] + b[0]) @ W[1] + b[1]) @ W[2] + b[2]
        assert record.accuracy == np.mean(test.argmax(axis=1) == data.y_test)
    assert record.saturated.max() > 0.1


@pytest.mark.parametrize("menu, choice", [(menu, choice) for menu, choices in MENUS.items() for choice in choices])
def test_every_choice_trains(data, menu, choice):
    records = run(data, **SMALL | {"depth": 3, "activation": "tanh", menu: choice})
    assert [r.step for r in records] == [1, 3]
    for r in records:
        assert r.gradient.shape == r.update.shape == (4,) and r.saturated.shape == (3,)
        assert np.isfinite(r.loss) and np.isfinite(r.gradient).all() and not r.diverged
        assert 0 <= r.accuracy <= 1 and np.all((0 <= r.saturated) & (r.saturated <= 1))
        assert np.isfinite(r.update).all() or choice == "zeros"


def test_looking_changes_nothing(data, monkeypatch):
    """The statistics of batch normalization, above all: the held-out digits must not enter them."""
    seldom = run(data, **SMALL | {"norm": "batch", "steps": 30})
    monkeypatch.setattr(live, "EVERY", 1)
    often = run(data, **SMALL | {"norm": "batch", "steps": 30})
    assert [r.step for r in seldom] == [1, 10, 20, 30] and [r.step for r in often] == list(range(1, 31))
    assert seldom[-1].loss == often[-1].loss and seldom[-1].accuracy == often[-1].accuracy


def test_the_first_click_shows_a_network_that_does_not_learn_and_tanh_one_that_does(data):
    first, tanh = run(data, steps=300), run(data, steps=300, activation="tanh")
    assert first[0].gradient[0] < 1e-5 * first[0].gradient[-1] and first[-1].accuracy < 0.25
    assert tanh[0].gradient[0] > 0.1 * tanh[0].gradient[-1] and tanh[-1].accuracy > 0.85


def test_saturation_is_a_slope_below_a_tenth_of_the_largest(data):
    share = {
        a: run(data, **SMALL | {"activation": a, "gain": 20.0, "steps": 1})[0].saturated
        for a in ("identity", "sigmoid", "relu")
    }
    assert np.all(share["identity"] == 0) and np.all(share["sigmoid"] > 0.5)
    assert np.all((0.2 < share["relu"]) & (share["relu"] < 0.8))
    sigmoid, tanh, gelu = (activations.largest_slope(vg.ACTIVATIONS[name]) for name in ("sigmoid", "tanh", "gelu"))
    assert sigmoid == 0.25 and tanh == 1 and 1.08 < gelu < 1.14


def test_divergence_ends_the_run_with_a_record_of_it(data):
    records = run(data, activation="identity", gain=3.0, rate=10.0, steps=500)
    last = records[-1]
    assert last.diverged and 1 < last.step < 500 and not any(r.diverged for r in records[:-1])
    assert "inf or nan" in str(last)
    bench.figure(records)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"depth": 1}, "depth: got 1, expected at least 2"),
        ({"width": 0}, "width: got 0"),
        ({"steps": 2.5}, "steps: got 2.5, expected an integer"),
        ({"activation": "tanhh"}, "activation: got 'tanhh'.*Did you mean 'tanh'"),
        ({"optimizer": "adam"}, "optimizer: got 'adam'.*Did you mean"),
        ({"rate": -1.0}, "rate: got -1.0, expected a number above 0"),
        ({"limit": float("nan")}, "limit: got nan"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Settings(**settings)


def test_recorded_runs_are_the_panels(data):
    rows = live.recorded({"a": Settings(**SMALL), "b": Settings(**SMALL | {"activation": "relu"})})
    assert [(row["run"], row["step"]) for row in rows] == [("a", 1), ("a", 3), ("b", 1), ("b", 3)]
    want = run(data, **SMALL)[-1]
    assert np.allclose(rows[1]["gradient"], want.gradient, rtol=0.01) and np.isclose(
        rows[1]["loss"], want.loss, rtol=0.01
    )
    assert live._plain(np.array([1.0, np.nan])) == [1.0, None]


def test_the_figure_has_four_labelled_panels_and_leaves_zeros_out(data):
    records = run(data, **SMALL | {"init": "zeros"})
    picture = bench.figure(records, previous=run(data, **SMALL))
    assert len(picture.axes) == 4
    for axes in picture.axes:
        assert axes.get_title() and axes.get_xlabel() and axes.get_ylabel() and axes.get_legend()
    picture.canvas.draw()
    assert len(picture.axes[0].lines) == 3, "this run, the run before, guessing"


def test_training_needs_neither_widgets_nor_matplotlib():
    code = (
        "import sys; sys.modules['ipywidgets'] = sys.modules['matplotlib'] = None\n"
        "import numpy as np, vanishing as vg\n"
        "[*vg.live.train(vg.live.Settings(steps=1), rng=np.random.default_rng(0))]\n"
        "try: vg.bench()\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "vg.bench() needs ipywidgets" in done.stdout and "pip install" in done.stdout


# The panel. There is no browser here: `echo` does what the browser does.


PNG = bench._png


@pytest.fixture
def panel(monkeypatch):
    monkeypatch.setattr(bench, "MOMENT", 0.0)  # one record a moment
    monkeypatch.setattr(bench, "_png", lambda *_: "")  # drawing is the slow part
    panel = vg.bench(steps=50, depth=2, width=8)
    panel.broken = False  # a test that breaks a callback says so
    yield panel
    assert panel.broken or panel.error is None, panel.message.value


def echo(panel):
    panel.pong.value = panel.ping.value


def press(panel, button="start"):
    widget = getattr(panel, button)
    assert not widget.disabled
    widget.click()


def finish(panel):
    for _ in range(1000):
        if not panel.running:
            return
        echo(panel)
    raise AssertionError("the run does not end")


def test_a_run_from_its_start_to_its_end(panel, monkeypatch):
    monkeypatch.setattr(bench, "_png", PNG)
    monkeypatch.setattr(bench, "REDRAW", 0.0)
    assert "Press Run" in panel.message.value and panel.stop.disabled
    press(panel)
    assert panel.running and panel.start.disabled and all(c.disabled for c in panel.controls.values())
    seen = [panel.progress.value]
    while panel.running:
        echo(panel)
        seen.append(panel.progress.value)
    assert seen[0] == 1 and seen[-1] == panel.progress.max == 50 and sorted(seen) == seen
    assert "Done: 50 steps" in panel.message.value
    assert [r.step for r in panel.records] == [1, 10, 20, 30, 40, 50]
    assert 'src="data:image/png;base64,' in panel.picture.value and f'alt="{panel.records[-1]}"' in panel.picture.value
    assert str(panel.records[-1]) in panel.numbers.value and "loss" in panel.numbers.value
    assert not panel.start.disabled and panel.stop.disabled and not any(c.disabled for c in panel.controls.values())


@pytest.mark.parametrize("menu", MENUS)
def test_every_choice_of_the_panel_runs(panel, monkeypatch, menu):
    monkeypatch.setattr(bench, "MOMENT", 1.0)
    assert list(panel.controls[menu].options) == list(MENUS[menu])
    for choice in MENUS[menu]:
        panel.controls[menu].value = choice
        press(panel)
        finish(panel)
        assert panel.error is None, panel.message.value
        assert "Done" in panel.message.value


@pytest.mark.parametrize("name", [*bench.RANGES, *bench.DECADES])
def test_a_slider_reaches_the_run_and_cannot_leave_its_range(panel, monkeypatch, name):
    asked = []

    def one_step(settings, **_):
        asked.append(getattr(settings, name))
        yield live.Record(1, 1.0, 0.1, np.ones(3), np.zeros(2), np.ones(3))

    monkeypatch.setattr(bench, "train", one_step)
    low, high = bench.RANGES[name][:2] if name in bench.RANGES else (10.0**k for k in bench.DECADES[name])
    for wanted in (low, high, 10**9, -5):
        panel.controls[name].value = wanted
        press(panel)
        finish(panel)
    assert np.allclose(asked, [low, high, high, low])


def test_stop_stops_and_the_ping_that_was_under_way_does_no_harm(panel):
    press(panel)
    echo(panel)
    press(panel, "stop")
    n = len(panel.records)
    assert not panel.running and f"Stopped at step {panel.records[-1].step}" in panel.message.value
    echo(panel)
    assert len(panel.records) == n == 2 and panel.stop.disabled and not panel.start.disabled
    late = panel.ping.value
    press(panel)  # a new run, from the beginning
    assert panel.records[0].step == 1 and len(panel.previous) == n
    panel.pong.value = 0
    panel.pong.value = late  # an echo from the run before is no second clock
    assert len(panel.records) == 1
    finish(panel)
    assert panel.records[-1].step == 50


def test_reset_is_the_first_panel_again(panel):
    panel.controls["activation"].value, panel.controls["rate"].value = "relu", 0.01
    press(panel)
    press(panel, "reset")
    assert not panel.running and panel.records == panel.previous == [] and panel.picture.value == ""
    assert panel.controls["activation"].value == "sigmoid" and panel.controls["rate"].value == 0.1
    echo(panel)
    assert panel.records == []


def test_a_broken_callback_is_shown_in_the_panel(panel, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a <broken> callback")
        yield

    monkeypatch.setattr(bench, "train", broken)
    press(panel)
    panel.broken = True
    assert isinstance(panel.error, RuntimeError) and not panel.running
    assert "RuntimeError: a &lt;broken&gt; callback" in panel.message.value and 'role="alert"' in panel.message.value
    assert "test_live.py" in panel.message.value, "it says where"
    monkeypatch.setattr(bench, "train", train)
    press(panel)
    finish(panel)
    assert panel.error is None and "Done" in panel.message.value


@pytest.mark.parametrize("button", ["start", "stop", "reset"])
def test_no_button_fails_in_silence(panel, monkeypatch, button):
    """The exception of any callback is kept and shown."""
    press(panel)
    panel.start.disabled, calls = False, []

    def fails_once():
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("once")

    monkeypatch.setattr(panel, "_end", fails_once)
    press(panel, button)
    panel.broken = True
    assert isinstance(panel.error, ZeroDivisionError) and "ZeroDivisionError: once" in panel.message.value


def test_a_setting_that_no_network_can_have_is_refused_in_the_panel(panel):
    panel.controls["width"].value, panel.controls["norm"].value = 30, "group"  # a slider moves by 8
    press(panel)
    panel.broken = True
    assert "groups: got 4, expected a divisor of n = 30" in panel.message.value and not panel.running


def test_divergence_is_said_with_its_step(panel):
    for name, value in {"activation": "identity", "gain": 10.0, "rate": 10.0, "depth": 12}.items():
        panel.controls[name].value = value
    press(panel)
    finish(panel)
    assert f"Diverged at step {panel.records[-1].step}" in panel.message.value and "clipping" in panel.message.value


def test_what_bench_refuses():
    with pytest.raises(TypeError, match="settings: got deep, expected some of depth, width"):
        vg.bench(deep=3)
    for setting in ({"depth": 1000}, {"rate": 1e6}, {"activation": "tanhh"}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            vg.bench(**setting)


def test_every_control_explains_itself(panel):
    for name, control in panel.controls.items():
        tip = control.tooltip if control.has_trait("tooltip") else control.description_tooltip
        assert tip == bench.CONTROLS[name][1] and tip in panel.box.children[-1].value
    assert all(button.tooltip for button in (panel.start, panel.stop, panel.reset))


# The panel in a kernel, over the messages that a browser sends and gets


class Browser:
    """A frontend with two abilities: to click a button, and to follow the link from ping to pong."""

    def __init__(self, client):
        self.client, self.ids, self.models, self.said, self.pings = client, {}, {}, [], 0

    def send(self, id, **data):
        message = self.client.session.msg("comm_msg", {"comm_id": id, "data": data})
        self.client.shell_channel.send(message)

    def click(self, description):
        self.send(self.ids[description], method="custom", content={"event": "click"})

    def execute(self, code):
        return self.client.execute(code)

    def follow(self, until, seconds=60):
        """Read messages, and answer pings, until one of them satisfies `until`; return it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                message = self.client.get_iopub_msg(timeout=0.2)
            except queue.Empty:
                continue
            kind, content = message["msg_type"], message["content"]
            assert kind != "error" and not (kind == "stream" and content["name"] == "stderr"), content
            if kind == "comm_open":
                state = content["data"]["state"]
                self.models[content["comm_id"]] = state
                self.ids[state.get("description") or state.get("_model_name")] = content["comm_id"]
            if kind == "comm_msg" and content["data"].get("method") == "update":
                state = content["data"]["state"]
                self.said.append(str(state.get("value", "")))
                if self.link and content["comm_id"] == self.link[0]:
                    self.pings += 1
                    self.send(self.link[1], method="update", state=state, buffer_paths=[])
            if until(message):
                return message
        raise AssertionError(f"not seen in {seconds} s; the last that was said: {self.said[-3:]}")

    @property
    def link(self):
        state = self.models.get(self.ids.get("DirectionalLinkModel"))
        return state and [end[0].removeprefix("IPY_MODEL_") for end in (state["source"], state["target"])]


@pytest.fixture
def kernel():
    manager = pytest.importorskip("jupyter_client.manager")
    manager, client = manager.start_new_kernel(kernel_name="python3", startup_timeout=60)
    yield Browser(client)
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_run_and_stop_in_a_kernel(kernel):
    """Click Run; the kernel trains, answers a cell meanwhile, and stops soon after a click on Stop."""

    def is_idle_after(id):
        return lambda m: (
            m["parent_header"].get("msg_id") == id
            and m["msg_type"] == "status"
            and m["content"]["execution_state"] == "idle"
        )

    def prints(text):
        return lambda m: m["msg_type"] == "stream" and text in m["content"]["text"]

    def says(text):
        return lambda m: m["msg_type"] == "comm_msg" and any(text in said for said in kernel.said[-1:])

    cell = kernel.execute("import vanishing as vg\npanel = vg.bench(steps=5000)\npanel")
    shown = kernel.follow(lambda m: m["msg_type"] == "display_data")
    assert "application/vnd.jupyter.widget-view+json" in shown["content"]["data"]
    kernel.follow(is_idle_after(cell))
    kernel.click("Run")
    kernel.follow(lambda m: kernel.pings >= 3)
    kernel.execute("print('training', panel.running, len(panel.records) > 1)")
    kernel.follow(prints("training True True"))
    kernel.click("Stop")
    clicked = time.monotonic()
    kernel.follow(says("Stopped at step"))
    assert time.monotonic() - clicked < 20, "within a moment, also on a busy machine"
    before = kernel.pings
    kernel.execute("print('after', panel.running, panel.error, panel.records[-1].step < 5000)")
    kernel.follow(prints("after False None True"))
    assert kernel.pings <= before + 1
    kernel.click("Run")  # and once more
    kernel.follow(lambda m: kernel.pings >= before + 3)


# The page


def test_the_page_has_no_widget_machinery(site):
    """The panel stands in the notebook; the site shows recorded runs instead."""
    text = (site / "pages" / "live.html").read_text("utf-8")
    assert "vg.bench()" in text or "bench" in text
    for machinery in ("jupyter.widget", "html-manager", "require.js", "require.min.js", "@jupyter-widgets"):
        assert machinery not in text


@in_browser
def test_the_page_shows_a_recorded_run_at_the_step_of_the_slider(tab, server):
    view = open_explorable(tab, server, "pages/live.html", "runs")
    rows = live.recorded({"batch normalization": Settings(norm="batch", steps=300)})
    view.locator("select").select_option("batch normalization")
    slider = view.locator("input[type=range]")
    slider.focus()
    for _ in range(3):
        tab.keyboard.press("ArrowLeft")
    now = drawn(tab, "runs", "number", "update_here", "step")
    want = next(row for row in rows if row["step"] == 270)
    assert [(r["number"], r["step"]) for r in now] == [(k, 270) for k in range(1, 14)]
    assert np.allclose([r["update_here"] for r in now], want["update"], rtol=0.02)
