"""Values as JSON, both ways: between the grader and a worker, which does not have the package.

A message is a line of JSON. The bytes of arrays, of which there may be many, follow the line as they are.
"""

import json
import re

import numpy as np


def pack(message, blobs):
    """A message, and the bytes that `encode` has put into the list `blobs`, as they go over the wire."""
    if blobs:
        message = message | {"blobs": [len(blob) for blob in blobs]}
    return b"".join([json.dumps(message).encode(), b"\n", *blobs])


def encode(value, functions, blobs):
    """A value as JSON. Functions do not travel: they are kept in the list `functions`, and their index goes.

    The bytes of arrays go into the list `blobs`.

    Raises:
        TypeError: neither a number, text, array, function, nor a list, tuple or dict of these.
    """
    if value is None or value is Ellipsis:  # `...` is a stub that returns what it is
        return None
    if isinstance(value, (bool, int, float, str)) and type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list):
        return [encode(item, functions, blobs) for item in value]
    if isinstance(value, tuple):
        return {"~": "tuple", "v": [encode(item, functions, blobs) for item in value]}
    if isinstance(value, dict):
        items = [[encode(k, functions, blobs), encode(v, functions, blobs)] for k, v in value.items()]
        return {"~": "dict", "v": items}
    if isinstance(value, complex):
        value = np.complex128(value)
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.ascontiguousarray(value)
        if array.dtype.kind not in "biufc":
            raise TypeError(f"array of {array.dtype}")
        if array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):  # long doubles differ between machines
            array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        blobs.append(array.tobytes())
        return {"~": kind, "dtype": array.dtype.str, "shape": np.shape(value), "blob": len(blobs) - 1}
    if isinstance(value, np.random.Generator):
        return {"~": "rng", "v": value.bit_generator.state}
    if callable(value):
        functions.append(value)
        return {"~": "function", "v": len(functions) - 1}
    raise TypeError(type(value).__name__)


def decode(tree, function, blobs, generators=False):
    """The value that `encode` made JSON of. Nothing is executed, and what does not fit raises an error.

    Args:
        tree: parsed JSON.
        function: called with an index, gives what stands for that function on this side.
        blobs: the bytes that came with it.
        generators: accept random generators (the grader does not).
    """
    if isinstance(tree, list):
        return [decode(item, function, blobs, generators) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind, v = tree["~"], tree.get("v")
    if kind == "tuple":
        return tuple(decode(item, function, blobs, generators) for item in v)
    if kind == "dict":
        return {decode(k, function, blobs, generators): decode(x, function, blobs, generators) for k, x in v}
    if kind == "function":
        return function(int(v))
    if kind == "rng" and generators:
        rng = np.random.Generator(getattr(np.random, v["bit_generator"])())
        rng.bit_generator.state = v
        return rng
    if kind in ("array", "scalar"):
        if not re.fullmatch(r"[<|](b1|[iu][1248]|f[248]|c8|c16)", tree["dtype"]):
            raise ValueError(f"dtype: got {tree['dtype']!r}, expected numbers")
        array = np.frombuffer(blobs[tree["blob"]], dtype=tree["dtype"]).copy()
        array = array.reshape([int(n) for n in tree["shape"]])
        return array if kind == "array" else array.reshape(())[()]
    raise ValueError(f"got a {kind!r}, expected a value")
