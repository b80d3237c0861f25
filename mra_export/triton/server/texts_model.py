"""Triton model: many texts of any lengths to the encoder's output, in batches of texts with the same number of blocks.

Copied into a model repository as model.py, with token_ids.py, pooling.py, chain.py and tokenizer.json beside it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from pooling import pooled
from token_ids import TokenIds, refusal


class TritonPythonModel:
    """`text` [batch, 1], and `prompt_name` [batch, 1] where one is wanted, to the encoder's output [batch, ...].

    Triton's own batcher ends a batch at the first request of another shape, so with mixed lengths its batches are small. All
    texts have one shape here: Triton hands over the texts of many requests at once, and this puts those of a length together.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the tokenizer, and the settings in the model's configuration."""
        config = json.loads(args["model_config"])
        self.parameters = config["parameters"]
        self.output = config["output"][0]["name"]
        self.encoder = self.parameters["encoder"]["string_value"]
        self.encoder_output = self.parameters["encoder_output"]["string_value"]
        self.batch = int(self.parameters["encoder_batch"]["string_value"])
        self.token_ids = TokenIds(self.parameters, self.parameters["encoder_inputs"]["string_value"].split(","))

    async def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; an error reaches the requests that had a part in it."""
        refused: dict[int, str] = {}
        errors: dict[int, str] = {}
        texts: list[str] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            try:
                given = self.token_ids.texts(pb_utils, request)
            except ValueError as error:
                refused[index] = str(error)
                continue
            texts += given
            owners += [index] * len(given)
        encodings = self.token_ids.encode(texts)
        batches = self.token_ids.batches(encodings, self.batch)
        results = await asyncio.gather(*(self._run([encodings[row] for row in rows]) for rows in batches))
        vectors: dict[int, list[Any]] = {index: [] for index in range(len(requests))}
        found: list[Any] = [None] * len(texts)
        for rows, result in zip(batches, results, strict=True):
            for place, row in enumerate(rows):
                if isinstance(result, str):
                    errors[owners[row]] = result
                else:
                    found[row] = result[place]
        for owner, vector in zip(owners, found, strict=True):
            vectors[owner].append(vector)
        responses = []
        for index in range(len(requests)):
            if index in refused:
                responses.append(refusal(pb_utils, refused[index]))
            elif index in errors:
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(errors[index])))
            else:
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(self.output, np.stack(vectors[index]))]))
        return responses

    async def _run(self, encodings: list[Any]) -> Any:
        """The output for texts of one length, or the text of an error."""
        arrays = self.token_ids.arrays(encodings)
        request = pb_utils.InferenceRequest(
            model_name=self.encoder,
            requested_output_names=[self.encoder_output],
            inputs=[pb_utils.Tensor(name, array) for name, array in arrays.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
        )
        response = await request.async_exec()
        if response.has_error():
            return response.error().message()
        output = pb_utils.get_output_tensor_by_name(response, self.encoder_output).as_numpy()
        if self.encoder_output != self.output:
            return pooled(output, arrays["attention_mask"], self.parameters)
        return output
