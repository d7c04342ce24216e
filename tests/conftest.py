"""What the tests share: the paths, the built site, and one BLAS thread for each process."""

import os
import signal
import sys
from pathlib import Path

# Tests run side by side: more than one BLAS thread each would fight for the cores.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

# Started in the background of a shell, everything below would ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture(scope="session")
def site():
    """The built site."""
    path = ROOT / "_build" / "html"
    if not (path / "index.html").exists():
        pytest.fail("the site is not built: run `make book` (or `python tools/book.py`) first")
    return path
