"""Statistics of the values of a graph, gathered by running it beside the model, and where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any, get_type_hints

import torch
from torch import Tensor, fx, nn

from lq_plugin.errors import CalibrationError
from lq_plugin.graph import int8_lstm, nesting
from lq_plugin.graph.capture import Call
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.nodes import arguments, operator_type
from lq_plugin.graph.placement import place_everywhere
from lq_plugin.graph.recurrent import Options, hidden_states
from lq_plugin.graph.torch_patches import isolated
from lq_plugin.identity import weights_digest
from lq_plugin.observers import Observer, Range, Statistic
from lq_plugin.scheme import Scheme


@dataclass(frozen=True)
class Provenance:
    """Where a candidate's weights come from, and its calibration where it has one.

    Args:
        checkpoint: name of the file whose weights were calibrated; ``"live"`` for weights in memory.
        global_step: the Trainer's optimizer steps when the statistics were gathered.
        checkpoint_global_step: those of the checkpoint whose weights are quantized with them.
        split: which data was observed: ``"validate"`` or ``"batches"`` (given by the caller); ``None`` where none was.
        samples: how many samples were observed.
        batches: in how many batches.
        observer: name of the observer, if any.
        seed: of the generator that chose the batches; ``None`` where all were taken.
        observed: digest of the options that say what was observed and how.
        extra_pass: whether they were gathered in a separate validation pass after training, because the checkpoint held
            no statistics of its weights.
        digest: of the graph whose values were observed and of the weights in it, see
            :func:`~lq_plugin.identity.graph_digest`; of the module's weights where no graph is captured. Empty where
            unknown: calibrations of earlier versions have none.
        structure: of that graph alone, see :func:`~lq_plugin.identity.structure_digest`.
    """

    checkpoint: str
    global_step: int | None
    checkpoint_global_step: int | None
    split: str | None
    samples: int
    batches: int
    observer: str | None
    seed: int | None
    observed: str = ""
    extra_pass: bool = False
    digest: str = ""
    structure: str = ""


def uncalibrated(module: nn.Module) -> Provenance:
    """Return the provenance of a module that is quantized as it is."""
    none = Provenance("live", None, None, split=None, samples=0, batches=0, observer=None, seed=None)
    return replace(none, digest=weights_digest(module))


@dataclass(frozen=True)
class Calibration:
    """Statistics by the name of the value, and their provenance."""

    statistics: Mapping[str, Statistic]
    provenance: Provenance

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and builtins only, fit for a checkpoint."""
        return {"statistics": dict(self.statistics), "provenance": asdict(self.provenance)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Calibration:
        """Rebuild a calibration from :meth:`state_dict`.

        Raises:
            CalibrationError: the state is malformed; it may come from any checkpoint.
        """
        try:
            return cls(_statistics(state["statistics"]), _provenance(state["provenance"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"calibration: its saved state is damaged ({error})") from error

    def made_by(self, observer: Observer) -> bool:
        """Whether the statistics have the parts that an observer's have."""
        form = _form(observer.update({}, torch.zeros(1)))
        return all(_form(statistic) == form for statistic in self.statistics.values())

    def ranges(self, observer: Observer) -> dict[str, Range]:
        """Return lowest and highest value to represent, by the name of the value."""
        return {name: observer.range(statistic) for name, statistic in self.statistics.items()}


@dataclass
class Recording:
    """A graph with observers in it, and the statistics that they have gathered so far."""

    graph: Graph
    recorders: dict[str, _Recorder]
    samples: int = 0
    batches: int = 0

    @classmethod
    def start(cls, graph: Graph, scheme: Scheme, values: Set[str] | None = None) -> Recording:
        """Put observers on every value that any runtime may quantize, or on the given values.

        Args:
            graph: a folded graph; its module is changed.
            scheme: which observer, and what is skipped.
            values: names of the values.
        """
        assert isinstance(scheme.observer, Observer)
        if values is None:
            values = {value for placed in place_everywhere(graph, scheme).values() for value in placed.sources}
        recorders: dict[str, _Recorder] = {}
        module = graph.module
        for node in list(module.graph.nodes):
            if node.name in values:
                recorders[node.name] = _Recorder(scheme.observer)
                _insert(node, recorders[node.name], (node,))
            elif operator_type(node) == "lstm" and values >= {*(hidden := int8_lstm.hidden_names(node))}:
                recorders |= {name: _Recorder(scheme.observer) for name in hidden}
                x, _, _, weights, *options = arguments(node)
                _insert(node, _HiddenStates([recorders[name] for name in hidden], Options(*options)), (x, weights))
        module.recompile()
        return cls(graph, recorders)

    def observe(self, tensors: Sequence[Tensor]) -> None:
        """Run the graph on one batch of inputs; they are cloned first, so that nothing is shared with the caller."""
        with isolated():
            self.graph.module(*(tensor.detach().clone() for tensor in tensors))
        self.samples += self.graph.samples(tensors)
        self.batches += 1

    def release(self) -> None:
        """Free the weights of the graph, which has to be a snapshot; it cannot run again.

        A graph refers to itself, so it lives until Python next collects garbage. Nothing makes that happen when a GPU
        runs out of memory, and each validation of a training would leave a copy of the model's weights there.
        """
        for tensor in (*self.graph.module.parameters(), *self.graph.module.buffers()):
            tensor.data = tensor.new_empty(0)

    def statistics(self) -> dict[str, Statistic]:
        """Return the statistic of every value that was observed.

        Raises:
            CalibrationError: nothing was observed.
        """
        if not self.batches:
            raise CalibrationError("calibration: no batch was observed. Give at least one batch of inputs.")
        return {name: recorder.statistic for name, recorder in self.recorders.items() if recorder.statistic}

    def calibration(self, observer: str, split: str, seed: int | None = None, observed: str = "") -> Calibration:
        """Return the statistics with their provenance; see :class:`Provenance` for the arguments.

        Raises:
            CalibrationError: nothing was observed.
        """
        provenance = Provenance(
            checkpoint="live",
            global_step=None,
            checkpoint_global_step=None,
            split=split,
            samples=self.samples,
            batches=self.batches,
            observer=observer,
            seed=seed,
            observed=observed,
            digest=self.graph.digest,
            structure=self.graph.structure,
        )
        return Calibration(self.statistics(), provenance)


_OF_PROVENANCE = get_type_hints(Provenance)


def _provenance(saved: Any) -> Provenance:
    made = Provenance(**saved)
    for name, kind in _OF_PROVENANCE.items():
        value = getattr(made, name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{name} is {value!r}")
    return made


def _statistics(saved: Any) -> dict[str, Statistic]:
    for name, statistic in saved.items():
        if not isinstance(name, str) or not isinstance(statistic, dict):
            raise TypeError(f"statistics[{name!r}] is a {type(statistic).__name__}")
        for part, tensor in statistic.items():
            # A tensor that is not contiguous may claim any number of elements.
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.is_contiguous():
                raise TypeError(f"statistics[{name!r}][{part!r}] is not a dense tensor")
            if bool(tensor.isnan().any()):
                raise ValueError(f"statistics[{name!r}][{part!r}] holds nan")
    return dict(saved)


def _form(statistic: Statistic) -> dict[str, torch.dtype]:
    return {part: tensor.dtype for part, tensor in statistic.items()}


class _Recorder(nn.Module):
    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer
        self.statistic: Statistic = {}

    def forward(self, values: Tensor) -> None:
        if values.numel():
            self.statistic = self.observer.update(self.statistic, values.detach())


class _HiddenStates(nn.Module):
    """Computes an LSTM again, and records the hidden states of each of its layers."""

    def __init__(self, recorders: Sequence[_Recorder], options: Options) -> None:
        super().__init__()
        self.recorders, self.options = nn.ModuleList(recorders), options

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> None:
        for recorder, hidden in zip(self.recorders, hidden_states(x, weights, self.options), strict=True):
            recorder(hidden)


def _insert(node: fx.Node, recorder: nn.Module, args: tuple[Any, ...]) -> None:
    """Call a recorder after a node."""
    module, name = node.graph.owning_module, f"recorder_{node.name}"
    assert module is not None
    module.add_submodule(name, recorder)
    with node.graph.inserting_after(node):
        node.graph.call_module(name, args)


def calls(batches: Iterable[Any]) -> Iterator[Call]:
    """Read batches as calls, with their tensors on the CPU.

    A dict is keyword arguments, a tuple positional ones, anything else the one argument.
    """
    for batch in batches:
        given = nesting.mapped(Tensor.cpu, batch)
        if isinstance(given, Mapping):
            yield (), given
        else:
            yield (given if isinstance(given, tuple) else (given,)), {}
