"""Files of ``torch.save``, written so that a full disk is an error, and read without running anything in them.

``torch.load(weights_only=True)`` refuses a whole checkpoint because of one ``functools.partial`` among its
hyperparameters, trusts the sizes that a file claims, and does not notice flipped bits. Here nothing is imported but
what is in torch's own list for ``weights_only`` (``torch.serialization.add_safe_globals`` adds to it), and an inert
:class:`Foreign` stands for everything else, so weights and plain values are read from any checkpoint. Members lie in
the file as they are, have the size that their tensors need and the checksum that was written with them.

As in :mod:`lq_plugin.untrusted`, a refusal is a ``ValueError`` that says in half a sentence what is wrong.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import _weights_only_unpickler as weights_only

from lq_plugin.untrusted import MEBIBYTE, opened

# A hundred thousand tensors take 20 MiB. Objects in memory may take sixty times the bytes that describe them.
DESCRIPTION_LIMIT = 64 * MEBIBYTE
_NOT_CALLED = {
    "torch._utils._rebuild_nested_tensor",  # believes the offsets that it is given, wherever they lead in memory
}
_PythonUnpickler: Any = pickle._Unpickler
_DICTS = (dict, OrderedDict, Counter)


class Foreign:
    """Stands for an object of a file whose class or function is not imported; nothing is done to it.

    Args:
        name: of the class or function, such as ``"functools.partial"``.
    """

    def __init__(self, name: str) -> None:
        self.name = name


class _RefusedError(ValueError):
    """What is wrong is known exactly."""


def write(value: Any, path: Path) -> None:
    """Write what :func:`read` returns.

    torch writes to memory: given the name of a file, its C++ code ends the whole process when the disk is full.

    Raises:
        OSError: it cannot be written.
    """
    content = io.BytesIO()
    torch.save(value, content)
    path.write_bytes(content.getbuffer())


def read(path: Path) -> Any:
    """Return what ``torch.save`` wrote into a file, with its tensors on the CPU.

    Args:
        path: the file, or a link to it.

    Raises:
        ValueError: it is not such a file, is damaged, or does more than describe tensors and plain values.
    """
    file = Path(os.path.realpath(path))
    try:
        with opened(file) as stream:
            return _content(stream)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error


def walk(value: Any) -> Iterator[Any]:
    """Yield a value and everything in its containers, keys too, each once: they may hold themselves."""
    waiting, seen = [value], set[int]()
    while waiting:
        item = waiting.pop()
        if id(item) not in seen:
            seen.add(id(item))
            yield item
            waiting += [*item.keys(), *item.values()] if isinstance(item, dict) else ()
            waiting += item if isinstance(item, (list, tuple, set, frozenset)) else ()


def foreign_in(value: Any) -> str | None:
    """Return the name of what a :class:`Foreign` in a value stands for, ``None`` where all of it is plain."""
    return next((item.name for item in walk(value) if isinstance(item, Foreign)), None)


def _content(stream: BinaryIO) -> Any:
    beginning, size = stream.read(2), os.fstat(stream.fileno()).st_size
    if not beginning:
        raise ValueError("is empty")
    if not zipfile.is_zipfile(stream):
        raise ValueError(
            "is cut off or damaged: its end is missing"
            if beginning == b"PK"
            else "was not written by torch.save (or by torch before 1.6: load it there and save it again)"
        )
    try:
        return _unpickled(_Archive(stream, size))
    except _RefusedError:
        raise
    except Exception as error:  # a damaged description fails in every way that an instruction can fail
        raise ValueError(f"is damaged, or was not written by torch.save ({type(error).__name__}: {error})") from error


class _Archive:
    """Members of a file of ``torch.save``, which is a zip file without compression."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._zip = zipfile.ZipFile(stream)
        self._members = {member.filename: member for member in self._zip.infolist()}
        if any(member.compress_type != zipfile.ZIP_STORED for member in self._members.values()):
            raise _RefusedError("is compressed, which torch.save does not do")
        if sum(member.file_size for member in self._zip.infolist()) > size:
            raise _RefusedError("claims to hold more than its size")
        roots = [name.removesuffix("/data.pkl") for name in self._members if name.endswith("/data.pkl")]
        if len(roots) != 1 or f"{roots[0]}/constants.pkl" in self._members:
            raise _RefusedError("is a zip file, but was not written by torch.save")
        self._root = roots[0]
        if self._has("byteorder") and self.member("byteorder", 16) != sys.byteorder.encode():
            raise _RefusedError(f"was written on a machine with another byte order than this one's {sys.byteorder!r}")

    def _has(self, name: str) -> bool:
        return f"{self._root}/{name}" in self._members

    def member(self, name: str, limit: int) -> bytes:
        """Return a member's bytes, compared with its checksum."""
        member = self._members[f"{self._root}/{name}"]
        if member.file_size > limit:
            raise _RefusedError(f"has a {name} of {member.file_size} bytes; the largest that is read has {limit}")
        if not member.CRC:  # torch.serialization.set_crc32_options(False)
            member.CRC = None  # type: ignore[assignment]
        try:
            return self._zip.read(member)
        except zipfile.BadZipFile as error:
            raise _RefusedError(f"is damaged ({error})") from None

    def storage(self, name: str, size: int) -> torch.UntypedStorage:
        """Return a member as the memory of a tensor that needs ``size`` bytes."""
        content = bytearray(self.member(name, size))
        if len(content) != size:
            raise _RefusedError(f"is damaged: its {name} has {len(content)} bytes in place of {size}")
        return torch.frombuffer(content, dtype=torch.uint8).untyped_storage() if size else torch.UntypedStorage()  # type: ignore[no-untyped-call]


def _unpickled(archive: _Archive) -> Any:
    try:
        return _Unpickler(archive).load()
    finally:  # torch lists the sparse tensors that it loads, and checks their indices only when asked to
        with torch.sparse.check_sparse_tensor_invariants():  # type: ignore[no-untyped-call]
            torch._utils._validate_loaded_sparse_tensors()  # type: ignore[no-untyped-call]


class _Unpickler(_PythonUnpickler):  # type: ignore[misc]
    """Python's own unpickler, with each instruction that could do something outside of the file replaced.

    It is the one written in Python: the one in C allocates whatever amount of memory an instruction names.
    """

    def __init__(self, archive: _Archive) -> None:
        super().__init__(io.BytesIO(archive.member("data.pkl", DESCRIPTION_LIMIT)))
        self._archive = archive
        self._storages: dict[str, torch.storage.TypedStorage] = {}
        added: dict[str, Any] = weights_only._get_user_allowed_globals()  # type: ignore[no-untyped-call]
        self._added = {id(made) for made in added.values()}
        self._known = {**weights_only._get_allowed_globals(), **added, "_codecs.encode": _latin}
        self._callables = {id(made) for name, made in self._known.items() if name not in _NOT_CALLED}

    def find_class(self, module: str, name: str) -> Any:
        """Import nothing."""
        found = f"{'builtins' if module == '__builtin__' else module}.{name}"
        return self._known.get(found, Foreign(found))

    def persistent_load(self, pid: Any) -> Any:
        """Return the memory of a tensor, each piece once, so that tied weights stay tied."""
        kind, storage_type, key, _, count = pid
        if kind != "storage" or not isinstance(key, str) or not isinstance(count, int):
            raise pickle.UnpicklingError("a reference to something other than the memory of a tensor")
        if key not in self._storages:
            dtype = torch.uint8 if storage_type is torch.UntypedStorage else storage_type.dtype
            memory = self._archive.storage(f"data/{key}", count * dtype.itemsize)
            typed: Any = torch.storage.TypedStorage
            self._storages[key] = typed(wrap_storage=memory, dtype=dtype, _internal=True)
        return self._storages[key]

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"extension {code} of another program")

    def _call(self, function: Any, arguments: Any) -> Any:
        """Call what is in the list; what is foreign, or made of something foreign, is foreign."""
        for one in (function, *arguments):
            if isinstance(one, Foreign):
                return one
        if id(function) not in self._callables:
            raise pickle.UnpicklingError(f"a call of {function!r}")
        return function(*arguments)

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(self._call(function, arguments))

    def _new(self) -> None:
        arguments, made = self.stack.pop(), self.stack.pop()
        if isinstance(made, type) and id(made) in self._added:
            self.append(made.__new__(made, *arguments))
        else:
            self.append(self._call(made, arguments))

    def _new_by_name(self) -> None:
        named, _, made = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if not isinstance(made, Foreign):
            raise pickle.UnpicklingError(f"a call of {made!r} with named arguments {list(named)}")
        self.append(made)

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if type(made) is OrderedDict:  # a state dict has the versions of its modules as an attribute
            vars(made).update({key: value for key, value in state.items() if key == "_metadata"})
        elif id(type(made)) in self._added:
            self.append(state)
            super().load_build()
        elif not isinstance(made, Foreign):
            raise pickle.UnpicklingError(f"a state of {type(made).__name__}")

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        made = self.stack[-1]
        if type(made) is list:
            made.extend(items)
        elif type(made) is set:
            made.update(items)
        elif not isinstance(made, Foreign):
            raise pickle.UnpicklingError(f"items of {type(made).__name__}")

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _set_items(self) -> None:
        self._update(self.pop_mark())

    def _update(self, items: list[Any]) -> None:
        made = self.stack[-1]
        if type(made) in _DICTS:
            for key, value in zip(items[::2], items[1::2], strict=True):
                made[key] = value
        elif not isinstance(made, Foreign):
            raise pickle.UnpicklingError(f"items of {type(made).__name__}")

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("an instruction that torch.save does not write")

    dispatch: ClassVar[dict[int, Any]] = {
        **_PythonUnpickler.dispatch,
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _new,
        pickle.NEWOBJ_EX[0]: _new_by_name,
        pickle.BUILD[0]: _build,
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _appends,
        pickle.ADDITEMS[0]: _appends,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.INST[0]: _refuse,
        pickle.OBJ[0]: _refuse,
    }


def _latin(text: str, encoding: str) -> bytes:
    """Stand for ``_codecs.encode``: bytes are written as a text of that many characters, and in no other encoding."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"a string in the encoding {encoding!r}")
    return text.encode(encoding)
