"""A third of the zoo by the nodes' loaders; the unit tests load another third."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyui_multitalk.dev.zoo import nodes
from comfyui_multitalk.dev.zoo.files import Variant
from comfyui_multitalk.dev.zoo.plain import PlainSet, write_plain
from comfyui_multitalk.dev.zoo.variants import chosen


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PlainSet:
    return write_plain(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("variant", chosen(1), ids=lambda variant: variant.slug)
def test_variant_loads_with_its_values_or_is_refused_by_its_name(
    variant: Variant, plain: PlainSet, tmp_path: Path
) -> None:
    assert not nodes.check(variant, variant.write(tmp_path), plain).problem
