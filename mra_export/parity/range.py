"""Whether float16 holds a model's tensors: the largest absolute value of each in a float32 run, against float16's end.

The inputs are those of the check, real text where there is a tokenizer. Other texts have larger values, so that a tensor may only
reach half of what float16 holds.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.export.half import LARGEST_FLOAT16, too_small
from mra_export.export.probes import write_probed
from mra_export.parity.comparison import Comparison, LayerRange
from mra_export.runners.session import open_session, runtime_errors, session_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import torch

    from mra_export.export.onnx_model import OnnxModel
    from mra_export.trace import Inputs

__all__ = ["MARGIN", "check_range", "lost_weights", "recorded"]

MARGIN = 2.0
"""How often the largest value must fit into float16. The outliers of transformers sit in a few channels and hardly depend on the
text: over other texts than the check's they differ by some ten percent, rarely by more. One that passes half of the range may be
infinite in the next text, and what is infinite is NaN a layer later."""


def lost_weights(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """What `mra_export.export.half.too_small` says of a model's weights by name; those that are no numbers are passed over."""
    words = (too_small(name, tensor.numpy()) for name, tensor in weights.items() if tensor.is_floating_point())
    return [each for each in words if each is not None]


def check_range(
    model: OnnxModel,
    inputs: Iterable[Inputs],
    *,
    lost: Sequence[str] = (),
    origin: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Runs a float16 file in float32 and holds each of its tensors against float16's range.

    Args:
        model: the file; fp16.
        inputs: of each run.
        lost: weights that are too small for float16, as `mra_export.export.half.too_small` describes them.
        origin: where the ids come from, "text" or "random ids".
        progress: called with a line before the run.

    Returns:
        The comparison; its `ranges` has a line for each layer, and its notes say which tensor is too large.

    Raises:
        InputError: ONNX Runtime cannot run the file.
        DependencyError: ONNX Runtime is missing or too old.
    """
    title = f"{model.path.name} fp16"
    progress(f"{title}: the range of its tensors" + (f" on {origin}" if origin else ""))
    limit = LARGEST_FLOAT16 / MARGIN
    with tempfile.TemporaryDirectory(prefix="mra-export-") as folder:
        path = Path(folder) / "probed.onnx"
        probes = write_probed(model, path)
        session = open_session(str(path), session_options(), shown=str(model.path))
    names = [probe.output for probe in probes]
    wanted = [each.name for each in session.get_inputs()]
    largest = np.zeros(len(probes))
    for each in inputs:
        with runtime_errors(str(model.path)):
            values = session.run(names, {name: each[name] for name in wanted})
        largest = np.maximum(largest, [float(value) for value in values])  # NaN stays
    tensors: dict[tuple[str, str], float] = {}  # in the order in which they are computed
    for probe, value in zip(probes, largest.tolist(), strict=True):
        place = (probe.layer, probe.tensor)
        tensors[place] = float(np.maximum(tensors.get(place, 0.0), value))
    ranges: dict[str, LayerRange] = {}
    for (layer, tensor), value in tensors.items():
        known = ranges.get(layer)
        # The first one that is not finite: those after it follow from it.
        if known is None or (math.isfinite(known.largest) and not value <= known.largest):
            ranges[layer] = LayerRange(layer, tensor, value)
    worst = float(np.max(largest, initial=0.0))
    beyond = [place for place, value in tensors.items() if not value <= limit]
    notes = []
    if beyond:
        more = f" (the first of {len(beyond)} that are too large)" if len(beyond) > 1 else ""
        notes.append(
            f"{', '.join(beyond[0])}: {tensors[beyond[0]]:.6g}{more}; float16 ends at {LARGEST_FLOAT16:.0f}, and {limit:.0f} is "
            "allowed. Use --bf16."
        )
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        notes.append(f"too small for float16: {'; '.join(lost[:3])}{more}.")
    return Comparison(
        f"float16's range (ends at {LARGEST_FLOAT16:.0f}, margin {MARGIN:g})",
        title,
        {"largest_value": worst},
        {"largest_value": limit},
        not beyond,
        notes,
        ranges=list(ranges.values()),
    )


def recorded(comparisons: Sequence[Comparison]) -> dict[str, Any] | None:
    """The range among comparisons as an engine's manifest has it: limit, largest value, and each layer's; None without one."""
    for comparison in comparisons:
        if comparison.ranges:
            worst = max(comparison.ranges, key=lambda each: each.largest)
            return {
                "limit": comparison.tolerance["largest_value"],
                "largest": worst.largest,
                "tensor": f"{worst.name}, {worst.tensor}",
                "layers": [asdict(each) for each in comparison.ranges],
            }
    return None
