"""Serving without its extra says which command brings it."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["orjson", "uvloop", "starlette"])
def test_a_missing_package_is_named_with_the_command_that_brings_it(package):
    code = f"import sys; sys.modules[{package!r}] = None; import production_ml.serving"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert f"needs the package '{package}'" in result.stderr
    assert "pip install 'production-ml[serve]'" in result.stderr


def test_serving_needs_no_torch_and_no_mlflow():
    code = "import sys, production_ml.serving.announcement; print({'torch', 'mlflow'} & set(sys.modules))"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert result.stdout.strip() == "set()"
