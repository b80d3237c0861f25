"""Sends texts to a Triton Inference Server that serves a bundle's model repository, over gRPC, and prints the vectors.

python examples/triton/client.py [--url localhost:8001] [--model mra_onnx_texts] [--prompt NAME] TEXT ...

The bundle has to be written with --triton --triton-tokenizer. Needs pip install 'tritonclient[grpc]'.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


def strings(name: str, values: list[str]) -> InferInput:
    tensor = InferInput(name, [len(values), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[value.encode()] for value in values], dtype=np.object_))
    return tensor


def embed(client: InferenceServerClient, model: str, texts: list[str], prompt: str | None = None) -> np.ndarray:
    """The vectors of texts of any lengths, float32 [texts, dimension].

    Args:
        client: of the server.
        model: one of those named _texts.
        texts: the texts.
        prompt: name of the bundle's prompt that is put before each, "" for none; None for its default.
    """
    inputs = [strings("text", texts)]
    if prompt is not None:
        inputs.append(strings("prompt_name", [prompt] * len(texts)))
    answer = client.infer(model, inputs, outputs=[InferRequestedOutput("sentence_embedding")], client_timeout=60)
    return answer.as_numpy("sentence_embedding")


def main() -> int:
    parser = argparse.ArgumentParser(description="Embeds texts with a Triton Inference Server.")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    parser.add_argument("--url", default="localhost:8001", help="host and gRPC port (%(default)s)")
    parser.add_argument("--model", default="mra_onnx_texts", help="folder of the model repository (%(default)s)")
    parser.add_argument("--prompt", metavar="NAME", help="of the bundle's prompts, '' for none (its default)")
    arguments = parser.parse_args()
    try:
        with InferenceServerClient(arguments.url) as client:
            vectors = embed(client, arguments.model, arguments.texts, arguments.prompt)
    except InferenceServerException as error:
        print(error.message(), file=sys.stderr)
        return 1
    for vector in vectors:
        print(json.dumps(vector.tolist()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
