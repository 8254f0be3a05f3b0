"""An exported package computes what the module computes, or there is no package."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from production_ml.core.errors import ConfigError
from production_ml.mlops.model_export import ExportError, export_onnx
from production_ml.mlops.model_package import open_package


class FixedBatch(nn.Module):
    def forward(self, pixels):
        return pixels.reshape(int(pixels.shape[0]), 2, 2)


class Random(nn.Module):
    def forward(self, pixels):
        return pixels * torch.rand_like(pixels)


class Unknown(nn.Module):
    def forward(self, pixels):
        return torch.linalg.eigvals(pixels.reshape(-1, 2, 2)).real


class MixesTheRows(nn.Module):
    def forward(self, pixels):
        return pixels.sum(dim=0)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.into = nn.Linear(4, 4, bias=False)
        self.out = nn.Linear(4, 4, bias=False)
        self.out.weight = self.into.weight

    def forward(self, pixels):
        return self.out(self.into(pixels))


class TwoInTwoOut(nn.Module):
    def forward(self, left, right):
        return left + right, (left > right).to(torch.int64)


def digits_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def export(module, directory, *examples, inputs=("pixels",), outputs=("logits",), **options):
    examples = examples or (torch.randn(2, 4),)
    names = {"input_names": inputs, "output_names": outputs}
    return export_onnx(module, examples, directory, name="digits", **names, **options)


def run(package, **inputs):
    session = onnxruntime.InferenceSession(str(package.file("model.onnx")), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_the_package_answers_as_the_module_does_for_any_batch_size(tmp_path, rows):
    module = digits_net()
    package = export(module, tmp_path)
    pixels = torch.randn(rows, 4)

    (logits,) = run(package, pixels=pixels.numpy())

    np.testing.assert_allclose(logits, module.eval()(pixels).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_the_package_describes_its_interface_and_where_it_came_from(tmp_path):
    export(digits_net(), tmp_path, metadata={"step": 300})

    package = open_package(tmp_path)

    assert (package.runtime, package.metadata) == ("onnx", {"step": 300})
    assert [(spec.name, spec.datatype, spec.shape) for spec in package.inputs] == [("pixels", "FP32", (-1, 4))]
    assert [(spec.name, spec.datatype, spec.shape) for spec in package.outputs] == [("logits", "FP32", (-1, 3))]
    assert set(package.files) == {"model.onnx", "weights.safetensors"}


def test_the_weights_are_in_the_package_for_whoever_trains_on(tmp_path):
    module = digits_net()
    package = export(module, tmp_path)

    weights = load_file(package.file("weights.safetensors"))

    assert set(weights) == set(module.state_dict())
    assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())


def test_exporting_leaves_the_module_in_the_mode_it_was_in(tmp_path):
    module = digits_net().train()
    module[1].eval()

    export(module, tmp_path)

    assert module.training
    assert not module[1].training


def test_tied_weights_are_exported(tmp_path):
    package = export(Tied(), tmp_path)

    assert len(load_file(package.file("weights.safetensors"))) == 1


def test_several_inputs_and_outputs_keep_their_names_and_types(tmp_path):
    examples = (torch.randn(2, 4), torch.randn(2, 4))
    package = export(TwoInTwoOut(), tmp_path, *examples, inputs=("left", "right"), outputs=("sum", "larger"))

    assert [spec.datatype for spec in package.outputs] == ["FP32", "INT64"]


@pytest.mark.parametrize("module", [FixedBatch(), Random(), Unknown(), MixesTheRows()])
def test_a_module_whose_export_would_answer_otherwise_gets_no_package(tmp_path, module):
    with pytest.raises(ExportError):
        export(module, tmp_path)

    assert not (tmp_path / "model.json").exists()


@pytest.mark.parametrize(
    ("examples", "names"),
    [
        ((torch.randn(2, 4),), {"inputs": ("a", "b")}),
        ((torch.randn(2, 4),), {"outputs": ("a", "b")}),
        ((torch.randn(2, 4), torch.randn(3, 4)), {"inputs": ("left", "right")}),
        ((torch.randn(0, 4),), {}),
        ((torch.tensor(1.0),), {}),
    ],
)
def test_names_and_examples_that_do_not_fit_are_refused(tmp_path, examples, names):
    with pytest.raises(ConfigError):
        export(digits_net(), tmp_path, *examples, **names)
