"""A third of the zoo by the command's path, and the documentation's table against the zoo."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from comfyui_multitalk.dev.zoo import command
from comfyui_multitalk.dev.zoo.files import Loads, Refused, Variant
from comfyui_multitalk.dev.zoo.page import listed
from comfyui_multitalk.dev.zoo.plain import PlainSet, write_plain
from comfyui_multitalk.dev.zoo.result import compared, refused
from comfyui_multitalk.dev.zoo.variants import chosen, variants


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PlainSet:
    return write_plain(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("variant", chosen(), ids=lambda variant: variant.slug)
def test_variant_loads_with_its_values_or_is_refused_by_its_name(
    variant: Variant, plain: PlainSet, tmp_path: Path
) -> None:
    assert not command.check(variant, variant.write(tmp_path), plain).problem


def test_zoo_has_at_least_220_variants_of_different_names() -> None:
    titles = Counter(variant.slug for variant in variants())
    assert len(titles) >= 220
    assert not [title for title, count in titles.items() if count > 1]
    assert {variant.family for variant in chosen()} == {variant.family for variant in variants()}


def test_page_lists_every_variant_of_the_zoo(repository: Path) -> None:
    page = (repository / "docs" / "files.md").read_text(encoding="utf-8")
    assert sorted(listed(page)) == sorted(variant.title for variant in variants())


def test_result_names_what_is_wrong() -> None:
    expected = Loads({"a": torch.ones(2), "b": torch.ones(3)})
    assert not compared({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, expected)[1]
    assert "such as b" in compared({"a": torch.ones(2)}, expected).problem
    assert "a is off by 1.00" in compared({"a": torch.zeros(2), "b": torch.ones(3)}, expected)[1]
    assert "b is off by inf" in compared({"a": torch.ones(2), "b": torch.ones(1, 3)}, expected)[1]
    wrong = torch.full((2,), float("nan"))
    assert "a is off by nan" in compared({"a": wrong, "b": torch.ones(3)}, expected).problem
    rounded = Loads({"a": torch.full((2,), 0.1)})
    assert not compared({"a": torch.full((2,), 0.1).half()}, rounded).problem


def test_result_of_a_refusal_needs_its_words() -> None:
    assert not refused("x is a HuMo model", Refused("HuMo")).problem
    assert "lacks" in refused("x is a file of no known kind", Refused("HuMo")).problem
    assert "refused: x" in refused("x", Loads({})).problem
    assert "must be refused" in compared({}, Refused("HuMo")).problem
