"""torchao's quantizer for x86, as its tutorial shows it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lq_plugin import cpu


def quantize(model: nn.Module, batches: Sequence[Tensor], file: Path) -> None:
    """Calibrate a model and save its graph, which takes the batch size of these batches."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config(reduce_range=cpu.saturates())
    # Strict: without bytecode tracing, it refuses a ReLU module that is used twice.
    exported = torch.export.export(model, (batches[0],), strict=True)
    prepared = prepare_pt2e(exported.module(), x86.X86InductorQuantizer().set_global(config))
    with torch.no_grad():
        for x in batches:
            prepared(x)
        torch.export.save(torch.export.export(convert_pt2e(prepared), (batches[0],)), file)
