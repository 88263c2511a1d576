"""From files to a module: checked against their description, and called like the target. Nothing is unpickled."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from lq_plugin import cpu
from lq_plugin.artifacts import signing
from lq_plugin.artifacts.base import FORMATS, Factory, Run
from lq_plugin.artifacts.description import Artifact, read
from lq_plugin.errors import ArtifactError, ConfigError, LqError
from lq_plugin.graph.signature import Signature
from lq_plugin.options import check_threads, check_type
from lq_plugin.printing import line

logger = logging.getLogger("lq_plugin")
_warned: set[Path] = set()  # artifacts that load has warned of, because they saturate here


class ArtifactModule(nn.Module):
    """An artifact as a module, called like its target and returning what its target returns.

    Tensors given on another device are copied to the CPU, where artifacts run.
    """

    def __init__(self, artifact: Artifact, signature: Signature, run: Run) -> None:
        super().__init__()
        self.artifact = artifact
        self.signature = signature
        self.run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call :meth:`forward`, past torch's own call where there are no hooks.

        That takes 3 microseconds after a runtime has used the CPU's caches, and a small model takes 70.
        """
        is_hooked = self._forward_pre_hooks or self._forward_hooks or _has_any_global_hook()  # type: ignore[no-untyped-call]
        return super().__call__(*args, **kwargs) if is_hooked else self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the artifact.

        Raises:
            ArtifactError: the call does not fit the captured signature, or the runtime fails.
        """
        tensors = self.signature.flatten(args, kwargs)
        for index, tensor in enumerate(tensors):  # what follows takes half a microsecond where nothing is to be changed
            if tensor.requires_grad or not (tensor.is_cpu and tensor.is_contiguous()):
                tensors[index] = tensor.detach().cpu().contiguous()
        try:  # not _refused: entering it takes a microsecond, and a small model takes 70
            return self.signature.unflatten(self.run(tensors))
        except LqError:
            raise
        except Exception as error:
            raise _refusal(self.artifact, error) from error


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    factory: Factory | None = None,
    verify: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Load an artifact as a module with the call signature and output structure of its target.

    Lightning is not needed, nor is the user's code for a format that holds a graph. Nothing is unpickled.

    Args:
        path: an artifact's folder.
        threads: size of onnxruntime's or OpenVINO's thread pool; their own choice by default. torch's formats use the
            threads of torch, see ``torch.set_num_threads``.
        factory: for the format ``"torch"``: the target's class, or anything that returns a float module of the same
            structure when called without arguments.
        verify: PEM file of the public key of who signed it, see :func:`~lq_plugin.sign`; what is not signed with that
            key, or not as it was signed, is refused.

    Raises:
        ArtifactError: the folder is not an artifact, a file in it is missing, was changed or is refused by its runtime,
            the signature does not match, or the factory's module has another structure.
        ConfigError: the format needs a factory, and none was given; ``verify`` is no public key; too few threads.
        MissingExtraError: its runtime is not installed, or what checks signatures.
    """
    check_type("path", path, str, os.PathLike)
    check_threads(threads)
    artifact = read(path) if verify is None else read(signing.check(path, verify), signed=True)
    _warn_of_saturation(artifact)
    chosen = FORMATS[artifact.format]
    if chosen.rebuild is not None:
        if factory is None:
            raise ConfigError(
                f"factory: the format {artifact.format!r} holds INT8 layers without the code around them. Give the "
                "class of the target, load(path, factory=MyModel), or a function that returns an instance."
            )
        given = factory()  # what the user's own code raises is not the artifact's fault
        with _refused(artifact):
            return chosen.rebuild(artifact.path, lambda: given)
    assert chosen.load is not None
    if artifact.signature is None:
        raise ArtifactError(f"path: {str(artifact.path)!r} has no call signature. Export again.")
    with _refused(artifact):
        return ArtifactModule(artifact, artifact.signature, chosen.load(artifact.path, threads))


def _warn_of_saturation(artifact: Artifact) -> None:
    """Warn, once for each artifact, that this CPU's results may be wrong."""
    place = artifact.path.absolute()
    if not artifact.saturates_without_vnni or place in _warned or not cpu.saturates():
        return
    _warned.add(place)
    logger.warning(
        "%s has weights of 8 bits, and this CPU (%s) has no VNNI: sums that do not fit into 16 bits are cut off, and "
        "outputs may be less accurate than where it was measured. Export again with targets_cpu='any'.",
        artifact.path,
        cpu.name(),
    )


@contextmanager
def _refused(artifact: Artifact) -> Iterator[None]:
    """Name the artifact that a runtime refuses: files that pass our checks may still be invalid for it."""
    try:
        yield
    except LqError:
        raise
    except Exception as error:
        raise _refusal(artifact, error) from error


def _refusal(artifact: Artifact, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"path: {str(artifact.path)!r} is refused by {FORMATS[artifact.format].runtime} "
        f"({type(error).__name__}: {line(error)[:300] or 'no message'}). Export again."
    )
