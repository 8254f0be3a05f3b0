"""One queue before the model: the inference server, its batcher, its traffic split, its runtimes."""

from production_ml.core.errors import MissingDependencyError

try:
    from production_ml.serving.batching import BatchingConfig
    from production_ml.serving.config import ServerConfig
    from production_ml.serving.server import ModelServer
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.startswith("production_ml"):
        raise
    package = missing.name.partition(".")[0]
    raise MissingDependencyError(package, extra="serve", purpose="Serving a model") from missing

__all__ = ["BatchingConfig", "ModelServer", "ServerConfig"]
