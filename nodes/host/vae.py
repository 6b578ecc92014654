"""VAE: ComfyUI's own class for Wan2.1's video autoencoder, from any packaging.

ComfyUI's loader takes Wan's own names without a prefix, and no scales.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd

from ...multitalk_core.errors import WeightsError
from ...multitalk_core.files.identify import FileKind, identify, require
from ...multitalk_core.files.sizes import check_shapes
from ...wan_gguf_loader.files import open_weights
from ...wan_gguf_loader.load import account_for


def load_vae(path: Path) -> Any:
    """Load a VAE as ComfyUI's VAE.

    Raises:
        WeightsError: If the file is something else, or incomplete.
        GGUFError: If it cannot be read.
    """
    with open_weights(path, part="vae") as file:
        require(
            identify(file.shapes, file.metadata), FileKind.VAE, source=path.name, place="Load VAE"
        )
        try:
            vae = comfy.sd.VAE(sd=file.weights())
            model = vae.first_stage_model.state_dict()
        except (RuntimeError, KeyError, IndexError, AttributeError) as reason:
            raise WeightsError(
                f"{path.name} is no complete Wan2.1 VAE ({str(reason).splitlines()[0][:200]}). "
                "Get wan_2.1_vae.safetensors."
            ) from reason
        needed = {name: tuple(tensor.shape) for name, tensor in model.items()}
        check_shapes(file.shapes, needed, source=path.name, what="a Wan2.1 VAE")
        account_for(file, needed)
    return vae
