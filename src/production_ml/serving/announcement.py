"""The line that a person sees when the server is ready, with a request that works when it is pasted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from production_ml.mlops.model_package import TensorSpec
from production_ml.serving.config import TOKEN_VARIABLE
from production_ml.serving.server import ModelServer

_ELEMENTS_SPELLED_OUT = 8


def announcement(server: ModelServer, url: str) -> str:
    """What is served, where, in which shares, and an example."""
    served = ", ".join(
        f"{slot.reference} (version {slot.version.version}, {server.share(slot):.0%})" for slot in server.slots
    )
    version = server.slots[0].version
    example = example_request(url, version.model, version.inputs, with_token=server.config.token is not None)
    return f"Serving {served} at {url}. Try: {example}"


def example_request(url: str, model: str, inputs: Sequence[TensorSpec], *, with_token: bool) -> str:
    """A shell command that sends one row of zeros.

    Args:
        url: Of the server.
        model: The model's name.
        inputs: What it takes.
        with_token: Whether the server wants a token, which is taken from the environment.
    """
    authorization = f'-H "Authorization: Bearer ${TOKEN_VARIABLE}" ' if with_token else ""
    tensors = ",".join(_tensor(spec) for spec in inputs)
    return f"curl -s {authorization}{url}/v2/models/{model}/infer -d '{{\"inputs\":[{tensors}]}}'"


def _tensor(spec: TensorSpec) -> str:
    shape = [1 if size == -1 else size for size in spec.shape]
    count = math.prod(shape)
    zero = "false" if spec.datatype == "BOOL" else "0"
    # A picture's worth of zeros is left to the shell: the line is for reading, too.
    spelled_out = ",".join([zero] * count)
    data = spelled_out if count <= _ELEMENTS_SPELLED_OUT else f"'$(yes {zero} | head -{count} | paste -sd, -)'"
    listed = ",".join(map(str, shape))
    return f'{{"name":"{spec.name}","shape":[{listed}],"datatype":"{spec.datatype}","data":[{data}]}}'
