"""Runs the cells of a student's notebook and answers the grader, inside the sandbox.

Requests and replies are lines of JSON. Whatever a reply says is only ever a value, which the
grader compares: there is no word for "right".
"""

import ast
import importlib.machinery
import json
import re
import sys
import types

from values import decode, encode, pack


def code_cells(text):
    """The sources of a notebook's code cells, whatever made it (Jupyter, Colab, VS Code, nbformat 3)."""
    notebook = json.loads(text)
    cells = notebook["cells"] if "cells" in notebook else [c for s in notebook["worksheets"] for c in s["cells"]]
    sources = (c.get("source", c.get("input", "")) for c in cells if c.get("cell_type") == "code")
    return ["".join(s) if isinstance(s, list) else s for s in sources]


def without_magics(source):
    """A cell with the lines that only IPython understands replaced by `pass`."""
    first, _, rest = source.lstrip().partition("\n")
    if first.startswith("%%"):
        source = rest if re.match(r"%%(time|timeit|capture|prun)\b", first) else ""
    return re.sub(r"^([ \t]*)([%!?].*|[\w, ]+=[ \t]*[%!].*|[\w.]+\?{1,2})$", r"\1pass", source, flags=re.M)


def run_cell(source, namespace):
    """Run a cell. An import that fails, of a plotting library for instance, does not stop it: the names are returned."""
    refused = []
    try:
        tree = ast.parse(source)
    except SyntaxError:
        tree = ast.parse(without_magics(source))
    for node in tree.body:
        try:
            exec(compile(ast.Module([node], []), "<cell>", "exec"), namespace)
        except ImportError as error:
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                raise
            refused.append(error.name)
    return refused


class StandIn(types.ModuleType):
    """What a notebook finds under the library's name: checks do nothing here, the rest is not there."""

    def __init__(self, name):
        super().__init__(name)
        self.__path__, self.__spec__ = [], importlib.machinery.ModuleSpec(name, None)  # so that it is found

    @staticmethod
    def check(*_, **__):
        """Nothing: the grader checks."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"vanishing.{name} is not there while a notebook is graded: write it with NumPy")


def serve(channel):
    """Answer the grader's requests until it closes the channel."""
    stream = channel.makefile("rb", buffering=1 << 20)
    sys.modules["vanishing"] = StandIn("vanishing")
    namespace = {"__name__": "__main__", "display": lambda *_, **__: None}
    cells, given = [], []  # `given`: the functions that the grader knows by number

    def answer(n, reply, blobs=()):
        channel.sendall(pack({"n": n, **reply}, blobs))

    def rest(message):
        return [stream.read(size) for size in message.get("blobs", ())]

    def theirs(n):
        """A stand-in for each function of the grader's: it asks, and waits for the value."""

        def stub(index):
            def function(*args, **kwargs):
                blobs = []
                answer(n, {"callback": index, "args": [encode(v, given, blobs) for v in (args, kwargs)]}, blobs)
                reply = json.loads(stream.readline())
                if "error" in reply:
                    raise ValueError(reply["error"])
                return decode(reply["value"], stub, rest(reply), generators=True)

            return function

        return stub

    for line in stream:
        request = json.loads(line)
        n = request["n"]
        try:
            if "notebook" in request:
                cells = code_cells(request["notebook"])
                answer(n, {"value": len(cells)})
            elif "cell" in request:
                answer(n, {"value": None, "refused": run_cell(cells[request["cell"]], namespace)})
            else:
                which, blobs, back = request["call"], rest(request), []
                function = given[which] if isinstance(which, int) else namespace.get(which)
                if not callable(function):
                    answer(n, {"missing": True})
                    continue
                args, kwargs = (decode(tree, theirs(n), blobs, generators=True) for tree in request["args"])
                result = function(*args, **kwargs)
                try:
                    answer(n, {"value": encode(result, given, back)}, back)
                except (TypeError, ValueError, RecursionError) as error:
                    answer(n, {"unsendable": str(error)[:100]})
        except BaseException as error:  # sys.exit() in a cell, too, ends the cell only
            answer(n, {"error": [t.__name__ for t in type(error).__mro__]})
