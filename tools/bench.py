"""How fast the library is, as ratios measured in one run: `make bench`.

Each row times the library and something else on the same work, taking turns, and prints the
ratio of the medians beside the wanted one. Nothing here is a test: a busy machine must not
turn a right program into a failing one. Quiet the machine first; seconds are not comparable
between machines, ratios roughly are.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import reduce
from pathlib import Path

THREADS = "1"  # one BLAS thread for all: what a sweep or a build gives each process
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = THREADS

import numpy as np
import torch

import vanishing as vg
from vanishing.coursework.assign import assign
from vanishing.coursework.grade import grade

torch.set_num_threads(int(THREADS))
REPEATS = 9


def medians(**functions):
    """Median seconds of each function, called in turns; one round to warm up."""
    seconds = {name: [] for name in functions}
    for _ in range(REPEATS + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(s[1:])) for name, s in seconds.items()}


def row(what, ours, other, wanted, than):
    print(f"{what:46s} {1e3 * ours:9.1f} {1e3 * other:9.1f} {ours / other:7.2f}   {wanted:<9s} {than}", flush=True)


def torch_flow(weights, x, activation, parameters):
    """The same record by autograd: log10 RMS of every activation and of its gradient."""
    h = x.clone().requires_grad_(True)
    kept = [h]
    for W, b in weights:
        W.requires_grad_(parameters)
        b.requires_grad_(parameters)
        W.grad = b.grad = None
        h = activation(h @ W + b)
        h.retain_grad()
        kept.append(h)
    h.backward(torch.randn_like(h))
    return [
        (k.detach().square().mean().sqrt().log10().item(), k.grad.square().mean().sqrt().log10().item()) for k in kept
    ]


def network(depth, width, size=()):
    rng = np.random.default_rng(0)
    net = vg.mlp(
        [width] * (depth + 1), activation="tanh", output_activation="tanh", init="glorot_normal",
        rng=rng, dtype=np.float32, size=size,
    )  # fmt: skip
    return net, [block.layers[0].parameters for block in net.layers]


def products(weights, x):
    """The matrix products of a pass forward and a pass backward, and nothing else."""
    for p in weights:
        x = x @ p["W"]
    for p in reversed(weights):
        x = x @ np.swapaxes(p["W"], -1, -2)


def bench_gradient_flow():
    net, weights = network(50, 256)
    x = np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)
    tensors = [(torch.tensor(p["W"]), torch.tensor(p["b"])) for p in weights]
    tx = torch.tensor(x)
    m = medians(
        ours=lambda: vg.gradient_flow(net, x, rng=np.random.default_rng(2)),
        autograd=lambda: torch_flow(tensors, tx, torch.tanh, True),
        lean=lambda: torch_flow(tensors, tx, torch.tanh, False),
        products=lambda: products(weights, x),
    )
    what = "gradient_flow, 50 x 256, batch 256, float32"
    row(what, m["ours"], m["autograd"], "<= 0.75", "torch autograd, as a model is trained")
    row(what, m["ours"], m["lean"], "", "torch autograd, weights frozen")
    row(what, m["ours"], m["products"], "<= 1.35", "its matrix products alone")


def bench_ensemble():
    net, weights = network(50, 128, size=(64,))
    x = np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)
    tensors = [[(torch.tensor(p["W"][i]), torch.tensor(p["b"][i])) for p in weights] for i in range(64)]
    tx = torch.tensor(x)
    m = medians(
        ours=lambda: vg.gradient_flow(net, x, rng=np.random.default_rng(2)),
        loop=lambda: [torch_flow(t, tx, torch.tanh, True) for t in tensors],
        products=lambda: products(weights, np.broadcast_to(x, (64, *x.shape))),
    )
    what = "64 networks, 50 x 128, batch 64, float32"
    row(what, m["ours"], m["loop"], "<= 0.6", "a loop over torch")
    row(what, m["ours"], m["products"], "<= 1.5", "the matrix products alone")


def bench_spectrum():
    net, weights = network(50, 128)
    x = np.random.default_rng(1).standard_normal(128).astype(np.float32)

    def by_torch(dtype):
        tensors = [(torch.tensor(p["W"], dtype=dtype), torch.tensor(p["b"], dtype=dtype)) for p in weights]

        def forward(h):
            return reduce(lambda h, t: torch.tanh(h @ t[0] + t[1]), tensors, h)

        return torch.linalg.svdvals(torch.func.jacrev(forward)(torch.tensor(x, dtype=dtype))).log10()

    m = medians(
        ours=lambda: vg.log10_singular_values(net, x),
        float32=lambda: by_torch(torch.float32),
        float64=lambda: by_torch(torch.float64),
    )
    row(
        "log-spectrum, 50 x 128, float32 network",
        m["ours"],
        m["float32"],
        "<= 1",
        "torch.func.jacrev and its SVD, float32",
    )
    row(
        "log-spectrum, 50 x 128, float32 network",
        m["ours"],
        m["float64"],
        "",
        "the same in float64, which ours computes in",
    )
    smallest = [vg.log10_singular_values(net, x)[-1], *(by_torch(t)[-1].item() for t in (torch.float32, torch.float64))]
    print("    smallest singular value, log10: {:.2f} ours, {:.2f} and {:.2f} by jacrev".format(*smallest))


def bench_lstm():
    rng = np.random.default_rng(0)
    cell = vg.LSTM(64, 128, rng=rng, dtype=np.float32)
    x = rng.standard_normal((64, 100, 64)).astype(np.float32)
    dy = rng.standard_normal((64, 100, 128)).astype(np.float32)
    other = torch.nn.LSTM(64, 128, batch_first=True)
    tx, tdy = torch.tensor(x, requires_grad=True), torch.tensor(dy)

    def ours():
        cell.forward(x)
        cell.backward(dy)

    m = medians(ours=ours, torch=lambda: other(tx)[0].backward(tdy))
    row("LSTM, T = 100, batch 64, hidden 128", m["ours"], m["torch"], "<= 1.5", "torch.nn.LSTM with autograd")


def bench_import():
    code = (
        "import sys, time; t = time.perf_counter(); import vanishing; s = time.perf_counter() - t;"
        "print(s, any(m in sys.modules for m in ('torch', 'altair', 'matplotlib')))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
        for _ in range(REPEATS)
    ]
    seconds = float(np.median([float(s) for s, _ in runs]))
    print(f"{'import vanishing, NumPy included':46s} {1e3 * seconds:9.1f} ms        wanted: under 300 ms")
    print(f"    torch, Altair or matplotlib imported with it: {'yes' if any(h == 'True' for _, h in runs) else 'no'}")


def one_network(seed):
    """A point of the sweep: a network of depth 20 and its gradient."""
    rng = np.random.default_rng(seed)
    net = vg.mlp([64] * 21, activation="tanh", init="glorot_normal", rng=rng)
    x = rng.standard_normal((256, 64))
    return [vg.gradient_flow(net, x, rng=rng).log10_gradient[0] for _ in range(4)][0]


def without_machinery(processes):
    """Seconds for 200 networks in plain loops, split evenly: what the machine itself can give."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from bench import one_network; one_network(0);"
        "t = time.perf_counter(); [one_network(i) for i in range(int(sys.argv[2]))]; print(time.perf_counter() - t)"
    )
    command = [sys.executable, "-c", code, os.path.dirname(os.path.abspath(__file__)), str(200 // processes)]
    loops = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return max(float(loop.communicate()[0]) for loop in loops)


def bench_sweep():
    grid = {"seed": list(range(200))}
    vg.sweep(one_network, {"seed": [0, 1]}, jobs=2, progress=False)  # the workers start once
    seconds = {"one": [], "two": [], "loop": [], "loops": []}
    for _ in range(3):  # rounds of about twenty seconds each
        for name, run in (
            ("one", lambda: vg.sweep(one_network, grid, jobs=1, progress=False)),
            ("two", lambda: vg.sweep(one_network, grid, jobs=2, progress=False)),
        ):
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
        seconds["loop"].append(without_machinery(1))
        seconds["loops"].append(without_machinery(2))
    m = {name: float(np.median(s)) for name, s in seconds.items()}
    what = "sweep of 200 networks, 2 processes"
    print(f"{what:46s} {1e3 * m['two']:9.1f} {1e3 * m['one']:9.1f} {m['one'] / m['two']:6.2f}x   >= 1.8x   one process")
    gain = m["loop"] / m["loops"]
    print(f"    two plain loops, half of the networks each, gain {gain:.2f}x over one: the machine's own limit")


def bench_grading():
    """A class of 1,000: a third has done nothing, one in twenty is hostile."""
    if not shutil.which("bwrap"):
        print("grading 1,000 notebooks: bubblewrap is not installed")
        return
    hostile = [
        "while True: pass", "import os; os._exit(0)", "x = bytearray(6 << 30)", "import time; time.sleep(1000)",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "raise SystemExit",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "def typical_factor(f):\n    while True: pass",
        "print('x' * 30_000_000)", "import numpy as np\nnp.isclose = lambda *a, **k: True",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        assign(["chain-rule"], folder / "homework", seed=1)
        (folder / "class").mkdir()
        solved, stub = (
            json.loads((folder / "homework" / name).read_text("utf-8"))
            for name in ("instructor/chain-rule-solutions.ipynb", "student/chain-rule.ipynb")
        )
        for i in range(1000):
            notebook = solved if i % 3 else stub
            if i % 20 == 0:
                cell = {"cell_type": "code", "source": hostile[i // 20 % len(hostile)]}
                notebook = notebook | {"cells": [*notebook["cells"], cell]}
            (folder / "class" / f"student {i}.ipynb").write_text(json.dumps(notebook), "utf-8")
        start = time.perf_counter()
        results = grade(folder / "class", folder / "homework", folder / "grades", progress=False)
        seconds = time.perf_counter() - start
    print(f"{'grading 1,000 notebooks, 50 of them hostile':46s} {seconds:9.1f} s         wanted: under 60 s on 2 cores")
    print(f"    {sum(r['score'] == 30 for r in results)} with full points, {os.cpu_count()} cores")


if __name__ == "__main__":
    print(f"{'':46s} {'ours, ms':>9s} {'other, ms':>9s} {'ratio':>7s}   wanted    than")
    for bench in (
        bench_gradient_flow,
        bench_ensemble,
        bench_spectrum,
        bench_lstm,
        bench_import,
        bench_sweep,
        bench_grading,
    ):
        bench()
