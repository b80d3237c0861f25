"""Stands in for Triton's onnxruntime backend, which PyPI's tritonserver does not have: the same file and library, in Python.

Only the backend is replaced: names, types, batching, warm-up and the ensembles around it are what the repository says.
"""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        for library in config["model_operations"]["op_library_filename"]:
            assert not os.path.isabs(library), library
            options.register_custom_ops_library(library)
        file = Path(__file__).with_name(config["parameters"]["model"]["string_value"])
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.inputs = [each["name"] for each in config["input"]]
        self.outputs = [each["name"] for each in config["output"]]

    def execute(self, requests):
        """Runs what Triton batched as one batch, as its onnxruntime backend does."""
        rows = [[pb_utils.get_input_tensor_by_name(r, name).as_numpy() for r in requests] for name in self.inputs]
        try:
            # Requests of other shapes would not concatenate: Triton must not have put them together.
            feed = {name: np.concatenate(values) for name, values in zip(self.inputs, rows, strict=True)}
            results = self.session.run(self.outputs, feed)
        except Exception as error:
            failed = pb_utils.TritonError(str(error))
            return [pb_utils.InferenceResponse(error=failed) for _ in requests]
        ends = np.cumsum([len(each) for each in rows[0]])[:-1]
        parts = [np.split(result, ends) for result in results]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(n, p[i]) for n, p in zip(self.outputs, parts, strict=True)])
            for i in range(len(requests))
        ]
