"""Half precision where the processor has no instructions for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models.arithmetic
from models.arithmetic import arithmetic, is_widened

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What the processor can do is read anew, before and after."""
    models.arithmetic._flags.cache_clear()
    yield
    models.arithmetic._flags.cache_clear()


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has neither bfloat16 nor float16."""
    processor(tmp_path, monkeypatch, "flags\t\t: fpu avx2 avx512f")


def processor(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    file = folder / "cpuinfo"
    file.write_text(f"processor\t: 0\n{line}\nprocessor\t: 1\n{line}\n")
    monkeypatch.setattr(models.arithmetic, "_CPUINFO", file)


@pytest.mark.parametrize(
    ("line", "widened"),
    [
        ("flags\t\t: fpu avx2 avx512f", [True, True]),
        ("flags\t\t: fpu avx512f avx512_bf16", [False, True]),
        ("flags\t\t: fpu amx_bf16 avx512_fp16", [False, False]),
        ("Features\t: fp asimd asimdhp bf16", [False, False]),
        ("model name\t: of a kind that says nothing", [False, False]),
    ],
)
def test_the_processors_own_instructions_are_used_where_it_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, widened: list[bool]
) -> None:
    processor(tmp_path, monkeypatch, line)
    assert [is_widened(CPU, dtype) for dtype in HALVES] == widened
    assert not is_widened(CPU, torch.float32)
    assert not any(is_widened(CUDA, dtype) for dtype in HALVES)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("dtype", HALVES)
def test_a_product_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    conv, linear = nn.Conv2d(16, 8, 3, padding=1), nn.Linear(16, 8)
    for layer in (conv, linear):
        for parameter in layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
    image = torch.randn((2, 16, 5, 6), generator=generator).to(dtype)
    tokens = image.flatten(2).transpose(1, 2).contiguous()
    with torch.inference_mode():
        conv.to(dtype), linear.to(dtype)
        with arithmetic(CPU, dtype):
            found = conv(image), linear(tokens)
        conv.float(), linear.float()
        wanted = conv(image.float()), linear(tokens.float())
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b.to(dtype))


@pytest.mark.usefixtures("plain")
def test_other_dtypes_and_what_comes_after_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, half = torch.randn(2, 3), torch.randn(2, 3).bfloat16()
    seen: list[torch.dtype] = []
    real = Tensor.float

    def watched(tensor: Tensor) -> Tensor:
        seen.append(tensor.dtype)
        return real(tensor)

    monkeypatch.setattr(Tensor, "float", watched)
    with arithmetic(CPU, torch.bfloat16):
        F.linear(wide, wide)
        assert seen == []
        F.linear(half, half)
        assert seen == [torch.bfloat16, torch.bfloat16]
    F.linear(half, half)
    assert len(seen) == 2
