"""The demo: the whole path on handwritten digits, from a table of scans to a served model, with a real kill between."""

from importlib.util import find_spec

from production_ml.core.errors import MissingDependencyError

PACKAGES = (
    *("torch", "safetensors", "great_expectations", "pandas", "mlflow", "onnx", "onnxruntime"),
    *("starlette", "uvicorn", "uvloop", "httptools", "orjson", "plotly", "httpx", "sklearn"),
)
"""What the extra `demo` brings, as Python imports it."""


def require_packages() -> None:
    """Refuse to begin what would fail at a later station.

    Raises:
        MissingDependencyError: A package of the demo is not installed.
    """
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingDependencyError(package, extra="demo", purpose="The demo")
