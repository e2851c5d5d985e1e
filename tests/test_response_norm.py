"""Local response normalisation: the lecture notes' printed example, the definition, torch's, ONNX Runtime's."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from deploykit.errors import InputError
from deploykit.export import export_onnx
from deploykit.models.response_norm import LocalResponseNorm

# The lecture notes' example, ``tf.nn.lrn(a, depth_radius=2, bias=0, alpha=1, beta=1)``, channels last as they print it.
FEATURE_MAP = [
    [[1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1]],
    [[4, 3, 2, 1, 8, 7, 6, 5], [1, 2, 3, 4, 5, 6, 7, 8]],
]
_RISING = [0.07142857, 0.06666667, 0.05454545, 0.04444445, 0.03703704, 0.03157895, 0.04022989, 0.05369128]
_FALLING = [0.05369128, 0.04022989, 0.03157895, 0.03703704, 0.04444445, 0.05454545, 0.06666667, 0.07142857]
_MIXED = [0.13793103, 0.10000001, 0.0212766, 0.00787402, 0.05194805, 0.04, 0.03448276, 0.04545454]
PRINTED = [[_RISING, _FALLING], [_MIXED, _RISING]]


def channels_first(values):
    return torch.tensor([values], dtype=torch.float32).permute(0, 3, 1, 2)


def tensorflow(depth_radius, bias, alpha, beta):
    return LocalResponseNorm(n=2 * depth_radius + 1, k=bias, alpha=alpha, beta=beta)


def test_the_printed_example():
    answer = tensorflow(2, 0.0, 1.0, 1.0)(channels_first(FEATURE_MAP))
    np.testing.assert_allclose(answer.permute(0, 2, 3, 1)[0], PRINTED, rtol=0, atol=1e-8)


def test_the_printed_example_in_onnx_runtime(tmp_path):
    maps = channels_first(FEATURE_MAP)
    path = tmp_path / "norm.onnx"
    export_onnx(tensorflow(2, 0.0, 1.0, 1.0), path, example=torch.cat([maps, maps.flip(1)]))
    (node,) = onnx.load(path).graph.node
    assert (node.op_type, node.domain) == ("LRN", "")
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    assert attributes == {"alpha": 5.0, "beta": 1.0, "bias": 0.0, "size": 5}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"input": maps.numpy()})
    np.testing.assert_allclose(answer.transpose(0, 2, 3, 1)[0], PRINTED, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("n", "alpha", "beta", "k"), [(5, 1e-4, 0.75, 2.0), (5, 0.3, 0.75, 1.0), (3, 2.0, 1.0, 0.5), (1, 1.0, 0.5, 1.0)]
)
def test_alpha_is_torchs_divided_by_the_size(n, alpha, beta, k):
    torch.manual_seed(0)
    ours = LocalResponseNorm(n, alpha, beta, k).double()
    theirs = torch.nn.LocalResponseNorm(n, alpha=alpha * n, beta=beta, k=k).double()
    x = torch.randn(2, 7, 3, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x))
    weights = torch.randn_like(x)
    gradients = [torch.autograd.grad((norm(x) * weights).sum(), x)[0] for norm in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_the_definition_with_alexnets_numbers():
    """Krizhevsky et al. 2012, section 3.3: the sum runs from max(0, i - n/2) to min(N - 1, i + n/2)."""
    x = 100 * np.random.default_rng(0).standard_normal((1, 9, 2, 2))
    expected = np.empty_like(x)
    for i in range(9):
        near = x[:, max(0, i - 2) : min(8, i + 2) + 1]
        expected[:, i] = x[:, i] / (2 + 1e-4 * (near**2).sum(axis=1)) ** 0.75
    np.testing.assert_allclose(LocalResponseNorm()(torch.from_numpy(x)), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_neither_overflows_nor_loses_the_sum(dtype):
    x = (torch.linspace(-900, 900, 64).reshape(1, 8, 2, 4)).to(dtype)  # 900² is beyond float16
    answer = LocalResponseNorm()(x)
    assert answer.dtype == dtype
    torch.testing.assert_close(answer, LocalResponseNorm()(x.float()).to(dtype), rtol=1e-2, atol=0)


@pytest.mark.parametrize("n", [0, 4, -3])
def test_a_window_without_a_middle_is_refused(n):
    with pytest.raises(InputError, match=f"over {n} channels; allowed: an odd number"):
        LocalResponseNorm(n)
