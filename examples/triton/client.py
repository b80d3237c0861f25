"""Sends texts to a Triton Inference Server that serves a bundle's model repository, over gRPC, and prints the vectors.

python examples/triton/client.py [--url localhost:8001] [--model mra_onnx_texts] TEXT ...

The bundle has to be written with --triton --triton-tokenizer. Needs pip install 'tritonclient[grpc]'.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


def embed(client: InferenceServerClient, model: str, texts: list[str]) -> np.ndarray:
    """The vectors of texts of any lengths, float32 [texts, hidden size]; `model` is one of those named _texts."""
    request = InferInput("text", [len(texts), 1], "BYTES")
    request.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=np.object_))
    answer = client.infer(model, [request], outputs=[InferRequestedOutput("sentence_embedding")], client_timeout=60)
    return answer.as_numpy("sentence_embedding")


def main() -> int:
    parser = argparse.ArgumentParser(description="Embeds texts with a Triton Inference Server.")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    parser.add_argument("--url", default="localhost:8001", help="host and gRPC port (%(default)s)")
    parser.add_argument("--model", default="mra_onnx_texts", help="folder of the model repository (%(default)s)")
    arguments = parser.parse_args()
    try:
        with InferenceServerClient(arguments.url) as client:
            vectors = embed(client, arguments.model, arguments.texts)
    except InferenceServerException as error:
        print(error.message(), file=sys.stderr)
        return 1
    for vector in vectors:
        print(json.dumps(vector.tolist()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
