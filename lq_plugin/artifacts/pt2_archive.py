"""What a ``.pt2`` may hold: members by name, stored as they are, with plain tensors and a graph that was checked.

``torch.export.load`` unpickles samples, old tensors and custom objects, loads native libraries, and finds members
whatever their case. It also reads a zip file by other rules than Python does, so each may find other members in it. So
it never sees the file: it is given a new archive, made of only the members checked here.

A refusal is a ``ValueError`` that says in half a sentence what was found.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lq_plugin.artifacts import pt2_graph
from lq_plugin.untrusted import JSON_LIMIT, MEBIBYTE, parse_json, regular_file

_MEMBERS = re.compile(
    r"archive_(format|version)|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/(weights/(model_weights_config\.json|weight_\d+)|constants/(model_constants_config\.json|tensor_\d+))"
    r"|data/sample_inputs/model\.pt"
)
_TENSORS = re.compile(r"weight_\d+|tensor_\d+")
_ENCRYPTED = 0x1


def checked(file: Path) -> io.BytesIO:
    """Return an archive that holds the members of a file, each of which was checked.

    Raises:
        ValueError: the file holds something that torch would unpickle or run, or that grows beyond the file.
    """
    content = io.BytesIO()
    try:
        with zipfile.ZipFile(regular_file(file)) as given, zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as made:
            members = _members(given, file.stat().st_size)
            for name, member in members.items():
                data = given.read(member)
                if name.endswith(".json"):
                    _check_json(name, data, members)
                made.writestr(f"model/{name}", data)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ValueError(f"is not a complete archive ({error})") from None
    content.seek(0)
    return content


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return an archive's members by their names without the folder around them."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.split("/", 1)[-1]
        if not _MEMBERS.fullmatch(name) or name in members or (name.endswith(".pt") and member.file_size):
            raise ValueError(f"holds the member {name!r}")
        if member.flag_bits & _ENCRYPTED or member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"holds {name!r} compressed or encrypted")
        if member.file_size != member.compress_size:
            raise ValueError(f"gives {name!r} two sizes")
        if name.endswith(".json") and member.file_size > JSON_LIMIT:
            raise ValueError(f"holds {name!r} of more than {JSON_LIMIT / MEBIBYTE:g} MiB")
        members[name] = member
    if sum(member.file_size for member in members.values()) > size:
        raise ValueError("holds members that overlap")
    return members


def _check_json(name: str, data: bytes, members: Mapping[str, zipfile.ZipInfo]) -> None:
    content = parse_json(data)
    if not isinstance(content, dict):
        raise ValueError(f"has neither a graph nor tensors in {name!r}")
    if name.endswith("_config.json"):
        _check_tensors(name, content, members)
    else:
        pt2_graph.check(content)


def _check_tensors(name: str, content: Mapping[str, Any], members: Mapping[str, zipfile.ZipInfo]) -> None:
    """Check where the tensors of a graph are: each in a member of its own, as bytes."""
    folder = name.rpartition("/")[0]
    for key, entry in content["config"].items():
        path = entry["path_name"]
        if entry["use_pickle"] is not False or not (isinstance(path, str) and _TENSORS.fullmatch(path)):
            raise ValueError(f"stores {key!r} ({name}) as a pickled or custom object")
        stored = members.get(f"{folder}/{path}")
        if stored is None:
            raise ValueError(f"stores {key!r} in the member {path!r}, which is missing")
        # Of an empty member torch makes zeros of whatever size is written here.
        if not stored.file_size and {"as_int": 0} not in entry["tensor_meta"]["sizes"]:
            raise ValueError(f"stores {key!r} in an empty member")
