"""What the scripts inside ComfyUI share: ComfyUI without a server, the pack, and a scene to sample.

Imported before anything of ComfyUI: it reads the script's arguments COMFYUI PACK TINY SCRATCH.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

COMFYUI, PACK, TINY, SCRATCH = (Path(argument) for argument in sys.argv[1:5])
sys.path.insert(0, str(COMFYUI))
sys.argv = [sys.argv[0], "--cpu", "--base-directory", str(SCRATCH)]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.wan.model  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_wan import WanImageToVideo  # noqa: E402

import nodes as comfy_nodes  # noqa: E402

_spec = importlib.util.spec_from_file_location(
    "comfyui_multitalk", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
)
assert _spec is not None and _spec.loader is not None
sys.modules["comfyui_multitalk"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["comfyui_multitalk"])

from comfyui_multitalk.nodes.host import text, vision  # noqa: E402
from comfyui_multitalk.wan_gguf_loader.files import open_weights  # noqa: E402

PROMPT = "A person looks into the camera and talks."
CPU = torch.device("cpu")
KEY = "diffusion_model.blocks.0.self_attn.q.weight"
BASE = TINY / "wan_tiny_i2v_Q4_K_M.gguf"
ADAPTER = TINY / "multitalk_tiny.safetensors"


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative norm of the difference."""
    return float((a.float() - b.float()).norm() / b.float().norm())


class Scene:
    """A WanImageToVideo conditioning of `length` frames and a KSampler run on it."""

    def __init__(self, length: int = 9) -> None:
        torch.manual_seed(0)
        self.clip = text.load_text_encoder(TINY / "umt5_tiny.safetensors")
        self.clip_vision = vision.load_clip_vision(TINY / "clip_vision_tiny.safetensors")
        self.vae = comfy.sd.VAE(comfy.utils.load_torch_file(str(TINY / "wan_vae_tiny.safetensors")))
        self.photo = torch.rand(1, 64, 80, 3)
        seen = self.clip_vision.encode_image(self.photo)
        positive, negative = (
            self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))
            for prompt in (PROMPT, "blurred")
        )
        self.conditions = WanImageToVideo.execute(
            positive,
            negative,
            self.vae,
            80,
            64,
            length,
            1,
            start_image=self.photo,
            clip_vision_output=seen,
        ).args

    def sample(self, patcher: Any, *, steps: int = 3, conditions: Any = None) -> torch.Tensor:
        """Run KSampler: three steps of Euler at a guidance of 3."""
        positive, negative, latent = conditions or self.conditions
        result = comfy_nodes.common_ksampler(
            patcher, 0, steps, 3.0, "euler", "simple", positive, negative, latent
        )
        samples: torch.Tensor = result[0]["samples"]
        return samples


def comfyui_wan() -> Any:
    """Build ComfyUI's own Wan model around the tiny base, decoded."""
    with open_weights(BASE) as file:
        weights = {name: file.dequantize(name) for name in file.tensors}
        num_heads = file.num_heads
    config = comfy.supported_models.WAN21_I2V(
        {
            "image_model": "wan2.1",
            "model_type": "i2v",
            "dim": 256,
            "ffn_dim": weights["blocks.0.ffn.0.weight"].shape[0],
            "num_heads": num_heads,
            "num_layers": 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("blocks.")),
            "in_dim": 36,
            "out_dim": 16,
            "text_dim": weights["text_embedding.0.weight"].shape[1],
            "freq_dim": weights["time_embedding.0.weight"].shape[1],
        }
    )
    config.set_inference_dtype(torch.float32, None)
    wan = _WanWithImageWidth(config, weights["img_emb.proj.0.weight"].shape[0])
    wan.load_model_weights(weights, "")
    return comfy.model_patcher.ModelPatcher(wan, torch.device("cpu"), torch.device("cpu"))


class _WanWithImageWidth(comfy.model_base.WAN21):
    """ComfyUI's WAN21 with the tiny set's width of picture tokens, which it fixes at 1280."""

    def __init__(self, config: Any, image_dim: int) -> None:
        super().__init__(config, image_to_video=True)
        self.diffusion_model.img_emb = comfy.ldm.wan.model.MLPProj(
            image_dim,
            config.unet_config["dim"],
            operation_settings={
                "operations": comfy.ops.manual_cast,
                "device": None,
                "dtype": torch.float32,
            },
        )


def scene_forward(patched: Any, scene: Scene) -> torch.Tensor:
    """Call the network as it is loaded now."""
    generator = torch.Generator().manual_seed(3)
    net = patched.model.diffusion_model
    context = scene.conditions[0][0][0]
    seen = scene.conditions[0][0][1]["clip_vision_output"].penultimate_hidden_states
    x = torch.randn(1, 36, 3, 8, 10, generator=generator)
    velocity: torch.Tensor = net(x, torch.tensor([500.0]), context, seen)
    return velocity


def scene_forward_loaded(patched: Any, scene: Scene) -> torch.Tensor:
    comfy.model_management.load_models_gpu([patched])
    return scene_forward(patched, scene)
