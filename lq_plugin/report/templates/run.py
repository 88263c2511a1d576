"""Run this model with nothing but numpy and its runtime: ``python run.py [INPUTS.npz] [--output OUTPUTS.npz]``.

INPUTS.npz holds an array for each input, by the names that README.md lists. Without it, inputs are made from a seed:
floats from a normal distribution, integers 1 (a valid index in most tables, and a valid length), booleans false.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent


def run(file: str, inputs: list[Any]) -> Any:
    """Return the outputs for a list of inputs."""
    outputs: list[Any] = []  # lq_plugin puts the runtime's code here
    return outputs


def tensors(structure: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and description of each tensor in a value as artifact.json describes it."""
    kind, content = next(iter(structure.items()))
    if kind in ("tensor", "int"):
        yield name, structure
    elif isinstance(content, list):
        for key, item in content:
            yield from tensors(item, f"{name}.{key}")


def made(described: dict[str, Any], size: int, random: np.random.Generator) -> Any:
    """Make one input; each dynamic dimension has this size."""
    shape = [size if axis is None else axis for axis in described["shape"]]
    dtype = np.dtype(described["dtype"])
    if dtype.kind in "fc":
        return random.standard_normal(shape).astype(dtype)
    return np.full(shape, dtype.kind in "iu", dtype)


def given(file: str, wanted: dict[str, dict[str, Any]]) -> list[Any]:
    """Read inputs from a file."""
    try:
        with np.load(file, allow_pickle=False) as opened:
            arrays = dict(opened)
    except Exception as error:  # numpy's own message advises to unpickle it
        reason = getattr(error, "strerror", None) or "it is none"
        raise SystemExit(f"{file} cannot be read as a file of numpy.savez ({reason}).") from None
    missing = sorted(set(wanted) - set(arrays))
    if missing:
        raise SystemExit(f"{file} lacks {missing}. It must hold an array for each of {sorted(wanted)}.")
    for name, described in wanted.items():
        sizes = ["any" if size is None else size for size in described["shape"]]
        found = list(arrays[name].shape)
        if len(found) != len(sizes) or any(size not in ("any", one) for size, one in zip(sizes, found, strict=True)):
            raise SystemExit(f"{file}: {name!a} has the shape {found}. The model takes {sizes}.")
    return [np.array(arrays[name], described["dtype"], order="C") for name, described in wanted.items()]


def main() -> None:
    """Read or make inputs, run the model, and show its outputs."""
    parser = argparse.ArgumentParser(description="Run this model with nothing but numpy and its runtime.")
    parser.add_argument("inputs", nargs="?", help="an .npz file with an array for each input")
    parser.add_argument("--output", metavar="FILE.npz", help="save the outputs, by name")
    parser.add_argument("--seed", type=int, default=0, help="for inputs that are made (default: 0)")
    parser.add_argument("--size", type=int, default=8, help="of each dynamic dimension of these (default: 8)")
    options = parser.parse_args()
    description = json.loads((FOLDER / "artifact.json").read_text("utf-8"))
    signature = description["signature"]
    wanted = dict(pair for each in signature["parameters"] for pair in tensors(each["given"], each["name"]))
    random = np.random.default_rng(options.seed)
    inputs = (
        given(options.inputs, wanted)
        if options.inputs
        else [made(described, options.size, random) for described in wanted.values()]
    )
    file = next(name for name in sorted(description["files"]) if name.endswith("SUFFIX"))
    results = run(str(FOLDER / file), inputs)
    outputs = {name: results[next(iter(each.values()))] for name, each in tensors(signature["output"], "output")}
    for name, value in outputs.items():
        print(f"{name!a}: {value.dtype} {list(value.shape)}")
    if options.output:
        np.savez(options.output, **outputs)


if __name__ == "__main__":
    main()
