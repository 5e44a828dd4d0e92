"""LitServe with the same model, for benchmarks/serve.py; its interpreter needs `litserve` beside sketchray.

python3 -m venv .venv-lit && .venv-lit/bin/pip install --constraint constraints.txt --editable . litserve
.venv-lit/bin/python benchmarks/litserve_peer.py --port PORT
"""

from dataclasses import dataclass
from typing import Any, Literal

import litserve
import torch
import tyro

from sketchray.predictor import Predictor
from sketchray.strokes import from_record


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A server.

    Attributes:
        port: of loopback.
        checkpoint: the model.
        backend: that runs it.
    """

    port: int
    checkpoint: str = "models/quickdraw-345"
    backend: Literal["onnx", "torch"] = "onnx"


class Api(litserve.LitAPI):
    """Answers the requests of a batch together."""

    def setup(self, device: str) -> None:
        """Loads the model, in the process that answers."""
        torch.set_num_threads(1)
        given = tyro.cli(Arguments)
        self.predictor = Predictor.load(given.checkpoint, given.backend)

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Returns the points of a record."""
        return from_record(request["drawing"])

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Returns the drawings as they are, for they have different lengths."""
        return inputs

    def predict(self, inputs: list[Any]) -> list[Any]:
        """Returns the guesses about each."""
        return self.predictor.predict(inputs)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Returns the guesses as they are."""
        return output

    def encode_response(self, output: list[Any]) -> dict[str, Any]:
        """Returns an answer."""
        return {"predictions": [guess._asdict() for guess in output]}


if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.002, api_path="/v1/classify")
    server = litserve.LitServer(api, accelerator="cpu", timeout=30)
    port = tyro.cli(Arguments).port
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")
