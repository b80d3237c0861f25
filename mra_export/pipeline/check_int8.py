"""Compares int8 files with the PyTorch model: by what they lose on real texts, and attention node by attention node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mra_export.export.onnx_model import layer_constants
from mra_export.parity.compare import check_operator
from mra_export.parity.fidelity import LIMITS, Vectors, compare_vectors, vectors_of
from mra_export.parity.texts import proof_texts, samples_of
from mra_export.runners.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.export.onnx_model import OnnxModel
    from mra_export.parity.cases import Case
    from mra_export.parity.comparison import Comparison
    from mra_export.trace import Inputs, Runner

__all__ = ["Int8Check"]


@dataclass(frozen=True)
class Int8Check:
    """The checks of one int8 file, for every way of running it.

    Attributes:
        model: the file.
        reference: the PyTorch model.
        samples: texts that had no part in its making.
        expected: their vectors by `reference`.
        progress: called with a line before each step.
    """

    model: OnnxModel
    reference: Runner
    samples: Sequence[Inputs]
    expected: Vectors
    progress: Callable[[str], None]

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        model: OnnxModel,
        reference: Runner,
        max_seq_len: int | None,
        progress: Callable[[str], None],
    ) -> Int8Check:
        """Runs the PyTorch model.

        Args:
            checkpoint: the model.
            model: the file.
            reference: the PyTorch model.
            max_seq_len: longer texts are left out; None for none.
            progress: called with a line before each step.

        Raises:
            InputError: there is no tokenizer, and the checkpoint was not loaded with random weights.
        """
        samples = samples_of(model, proof_texts(), random_ids=checkpoint.random_init is not None, longest=max_seq_len)
        progress(f"{reference.name}: {len(samples)} texts")
        return cls(model, reference, samples, vectors_of(reference, samples), progress)

    def run(self, runner: Runner, dtype: str, cases: list[Case], token_outputs: tuple[str, ...]) -> list[Comparison]:
        """What the file loses as one runner computes it, and its attention on its own inputs.

        Args:
            runner: of the file.
            dtype: of its attention; one of `TOLERANCES`.
            cases: the inputs of the attention's check.
            token_outputs: outputs that have a value for each token.
        """
        again = None
        if isinstance(runner, OnnxRuntimeRunner):
            again = OnnxRuntimeRunner(self.model, library=runner.library, threads=1 if runner.threads != 1 else 2)
        self.progress(f"{runner.name}: {len(self.samples)} texts")
        limits = self.model.metadata.get("int8.limits", "int8")
        lost = compare_vectors(
            self.reference,
            runner,
            self.samples,
            limits if limits in LIMITS else "int8",
            again=again,
            expected=self.expected,
        )
        judge = self.model.family.judge(self.model.attributes, layer_constants(self.model))
        names = [layer.name for layer in self.model.layers]
        return [lost, *check_operator(runner, judge, names, dtype, cases, token_outputs, progress=self.progress)]
