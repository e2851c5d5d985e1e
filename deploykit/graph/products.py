"""Which operators multiply with weights, and at which input they have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PRODUCTS", "Product"]


@dataclass(frozen=True)
class Product:
    """Where an operator that multiplies has its inputs; None for what it lacks."""

    data: int = 0
    weight: int = 1
    bias: int | None = None
    kind: str = "matmul"


PRODUCTS: Mapping[str, Product] = {
    "Conv": Product(bias=2, kind="conv"),
    "FusedConv": Product(bias=2, kind="conv"),
    "ConvInteger": Product(kind="conv"),
    "QLinearConv": Product(weight=3, bias=8, kind="conv"),
    "ConvTranspose": Product(bias=2, kind="transposed"),
    "Gemm": Product(bias=2),
    "FusedGemm": Product(bias=2),
    "QGemm": Product(weight=3, bias=6),
    "MatMul": Product(),
    "FusedMatMul": Product(),
    "MatMulInteger": Product(),
    "QLinearMatMul": Product(weight=3),
    "DynamicQuantizeMatMul": Product(bias=4),
    "MatMulIntegerToFloat": Product(bias=6),
    "MatMulNBits": Product(bias=5),
    "MatMulBnb4": Product(),
}
"""By operator, those of ONNX Runtime's own domain included."""
