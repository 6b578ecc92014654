"""The internals of ComfyUI that `nodes/host/internals.py` relies on, one test for each."""

from __future__ import annotations

import inspect
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import pytest
import torch

from comfyui_multitalk.nodes.host import internals
from comfyui_multitalk.tests.host.inside.scene import CPU, KEY, comfyui_wan


def patched_wan() -> Any:
    """Give ComfyUI's own Wan under its own patcher, with one changed weight."""
    theirs = comfyui_wan()
    theirs.add_patches({KEY: ("diff", (torch.ones_like(theirs.model_state_dict()[KEY]),))})
    return theirs


def test_backup_has_the_fields_of_comfyuis_backup() -> None:
    theirs = patched_wan()
    theirs.load(CPU, full_load=True)
    assert theirs.backup[KEY]._fields == internals.Backup._fields


def test_load_list_entry_ends_with_size_name_module_and_parameters(theirs: Any) -> None:
    class Larger(internals.LoadList, comfy.model_patcher.ModelPatcher):
        def _extra_bytes(self, name: str) -> int:
            return 7

    before = comfy.model_patcher.ModelPatcher(theirs.model, CPU, CPU)._load_list()
    after = Larger(theirs.model, CPU, CPU)._load_list()
    assert len(before) == len(after) > 0
    for (*_, size, name, module, parameters), changed in zip(before, after, strict=True):
        assert size == comfy.model_management.module_size(module)
        assert theirs.model.get_submodule(name) is module
        assert parameters.keys() == dict(module.named_parameters(recurse=False)).keys()
        assert changed[-4:-2] == (size + 7, name)


def test_init_wan_sets_all_that_comfyuis_constructor_sets(base: Any, theirs: Any) -> None:
    assert not vars(theirs.model).keys() - vars(base.model).keys()
    assert base.model.image_to_video is theirs.model.image_to_video is True


def test_change_class_makes_a_patcher_one_of_a_subclass(theirs: Any) -> None:
    class Named(comfy.model_patcher.ModelPatcher):
        def model_size(self) -> int:
            return 7

    clone = comfy.model_patcher.ModelPatcher(theirs.model, CPU, CPU)
    internals.change_class(clone, Named)
    assert clone.model_size() == 7
    assert type(clone.clone()) is Named


def test_separate_ends_what_a_clone_shares_with_its_parent(theirs: Any) -> None:
    clone = theirs.clone()
    assert clone.parent is theirs
    assert clone.clone_base_uuid == theirs.clone_base_uuid
    assert clone.clone_has_same_weights(theirs, allow_multigpu=True)
    assert clone.size == theirs.model_size() > 0
    internals.separate(clone)
    assert not clone.clone_has_same_weights(theirs, allow_multigpu=True)
    assert clone.parent is None
    assert clone.model_size() == theirs.model_size()


def test_set_factory_is_called_for_a_second_model(theirs: Any) -> None:
    class CalledError(Exception):
        pass

    def make(value: int, **_options: Any) -> None:
        raise CalledError(value)

    clone = theirs.clone()
    internals.set_factory(clone, make, 7)
    with pytest.raises(CalledError, match="7"):
        clone.deepclone_multigpu()


def test_mark_loaded_sets_what_comfyui_sets_when_it_loads() -> None:
    theirs = patched_wan()
    layer = theirs.model.get_submodule(KEY.rpartition(".")[0])
    theirs.load(CPU, full_load=True)
    found = layer.comfy_patched_weights
    layer.comfy_patched_weights = False
    internals.mark_loaded(layer)
    assert layer.comfy_patched_weights == found


def test_remove_patches_names_where_the_patchers_put_functions() -> None:
    dynamic = inspect.getsource(comfy.model_patcher.ModelPatcherDynamic.load)
    assert 'setattr(m, param_key + "_lowvram_function", lowvram_patch)' in dynamic
    assert 'setattr(m, param_key + "_function", weight_function)' in dynamic
    assert "m.weight_function" in inspect.getsource(comfy.model_patcher.ModelPatcher.load)


def test_is_resident_reads_the_signature_that_casting_sets() -> None:
    assert 's._v_signature = prefetch["signature"]' in inspect.getsource(comfy.ops)
    assert "item._v_signature = None" in inspect.getsource(comfy.model_patcher)
    layer = torch.nn.Linear(1, 1)
    assert not internals.is_resident(layer)
    layer._v_signature = object()
    assert internals.is_resident(layer)
