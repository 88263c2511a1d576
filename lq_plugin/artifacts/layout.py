"""Names of the runtimes' files in an artifact's folder: our own, or those that Hugging Face's libraries look for.

optimum-onnx takes the one ``.onnx`` file below a folder, transformers.js ``onnx/model_quantized.onnx`` for 8 bits, and
optimum-intel ``openvino_model.xml``. Formats without such names keep their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from lq_plugin.errors import unknown_name

PLAIN = "plain"
HUGGINGFACE = "huggingface"
_SUBFOLDER = "onnx"
_NAMES = {
    "model.onnx": f"{_SUBFOLDER}/model_quantized.onnx",
    "model.onnx.data": f"{_SUBFOLDER}/model.onnx.data",  # the model refers to it by this name
    "model.xml": "openvino_model.xml",
    "model.bin": "openvino_model.bin",
}


def check_layout(layout: str) -> str:
    """Return the name of a layout.

    Raises:
        ConfigError: there is none of this name.
    """
    if layout not in (PLAIN, HUGGINGFACE):
        raise unknown_name("layout", str(layout), (PLAIN, HUGGINGFACE))
    return layout


def renamed(name: str) -> str:
    """Return a file's name for Hugging Face's libraries.

    Example:
        >>> renamed("model.xml"), renamed("model.pt2")
        ('openvino_model.xml', 'model.pt2')
    """
    return _NAMES.get(name, name)


def layouts(names: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of a format's files in either layout."""
    return frozenset(names), frozenset(map(renamed, names))


def place(folder: Path, name: str) -> Path:
    """Return where a file of a runtime lies in a folder of either layout."""
    other = folder / renamed(name)
    return other if other.is_file() else folder / name


def files(folder: Path) -> Iterator[Path]:
    """Yield what is in an artifact's folder, and in the one folder that may be in it."""
    for path in folder.iterdir():
        below = path.name == _SUBFOLDER and path.is_dir() and not path.is_symlink()
        yield from path.iterdir() if below else [path]


def move(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Give files the names that Hugging Face's libraries look for, and return the new ones by the old ones."""
    moved = {name: renamed(name) for name in names}
    for old, new in moved.items():
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / old).rename(folder / new)
    return moved
