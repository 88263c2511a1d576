"""Every global of torch that is exchanged for a while, and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules import transformer

from lq_plugin.graph.padding import padding_zeroed


@contextmanager
def isolated() -> Iterator[None]:
    """Run graph work in the middle of somebody's training: no gradients, no autocast, and no trace left behind.

    The random state is restored. The fast path of attention, an operator that no runtime knows, is off (padding.py does
    what it does to padding), and a mask is taken as it is given: whether it happens to be causal depends on its values,
    and no graph can branch on them.
    """
    fastpath, is_causal = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with (
            torch.random.fork_rng(devices),
            padding_zeroed(),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        transformer._detect_is_causal_mask = is_causal


@contextmanager
def process_group_hidden() -> Iterator[None]:
    """Hide the process group while one process works and the others wait: a collective would never end."""
    group = torch.distributed.group.WORLD if torch.distributed.is_available() else None
    if group is None:
        yield
        return
    torch.distributed.group.WORLD = None
    try:
        yield
    finally:
        torch.distributed.group.WORLD = group
