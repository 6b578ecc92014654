"""What the tests inside ComfyUI share: a scene to sample, ComfyUI's own Wan, changes of a MODEL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ldm.wan.model
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy_extras.nodes_wan import WanImageToVideo
from torch.nn import functional

import nodes as comfy_nodes  # ComfyUI's
from comfyui_multitalk.dev.tiny import wan
from comfyui_multitalk.nodes.host import text, vision
from comfyui_multitalk.tests.support.tiny import tiny_set
from comfyui_multitalk.wan_gguf_loader.files import open_weights

PROMPT = "A person looks into the camera and talks."
CPU = torch.device("cpu")
KEY = "diffusion_model.blocks.0.self_attn.q.weight"
SEED = 11
TINY = tiny_set()
BASE, ADAPTER = TINY.base, TINY.adapter


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Give the relative norm of the difference."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def weight_of(patcher: Any) -> torch.Tensor:
    """Give one quantised weight of a MODEL."""
    weight: torch.Tensor = comfy.utils.get_attr(patcher.model, KEY)
    return weight


class Scene:
    """A WanImageToVideo conditioning of `length` frames, and KSampler run on it."""

    def __init__(self, length: int = 9) -> None:
        torch.manual_seed(0)
        self.clip = text.load_text_encoder(TINY.text_encoder)
        self.clip_vision = vision.load_clip_vision(TINY.clip_vision)
        self.vae = comfy.sd.VAE(comfy.utils.load_torch_file(str(TINY.vae)))
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
        """Run KSampler: Euler steps at a guidance of 3."""
        positive, negative, latent = conditions or self.conditions
        result = comfy_nodes.common_ksampler(
            patcher, 0, steps, 3.0, "euler", "simple", positive, negative, latent
        )
        samples: torch.Tensor = result[0]["samples"]
        return samples

    def forward(self, patcher: Any) -> torch.Tensor:
        """Call the network as it is loaded now."""
        generator = torch.Generator().manual_seed(3)
        ((context, told),) = self.conditions[0]
        seen = told["clip_vision_output"].penultimate_hidden_states
        x = torch.randn(1, 36, 3, 8, 10, generator=generator)
        velocity: torch.Tensor = patcher.model.diffusion_model(
            x, torch.tensor([500.0]), context, seen
        )
        return velocity

    def forward_loaded(self, patcher: Any) -> torch.Tensor:
        """Load the network wholly, and call it."""
        comfy.model_management.load_models_gpu([patcher])
        return self.forward(patcher)


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
    net = _WanWithImageWidth(config, weights["img_emb.proj.0.weight"].shape[0])
    net.load_model_weights(weights, "")
    return comfy.model_patcher.ModelPatcher(net, CPU, CPU)


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


def load_lora(name: str = "tiny") -> dict[str, torch.Tensor]:
    """Read the tiny set's LoRA; `second` is another one, drawn now."""
    if name == "second":
        weights, _ = wan.base_and_adapter(seed=SEED)
        return wan.lora(weights, seed=SEED + 1)
    file: dict[str, torch.Tensor] = comfy.utils.load_torch_file(str(TINY.lora))
    return file


def with_lora(patcher: Any, strength: float = 1.0, name: str = "tiny") -> Any:
    """Give a clone with a LoRA, as LoraLoaderModelOnly does."""
    return comfy.sd.load_lora_for_models(patcher, None, load_lora(name), strength, 0.0)[0]


def with_attention(patcher: Any, override: Callable[..., torch.Tensor]) -> Any:
    """Give a clone with an attention override."""
    clone = patcher.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


def torch_attention(_function: Any, *tensors: Any, **_options: Any) -> torch.Tensor:
    """Attend by torch alone, which can be traced and runs on the meta device."""
    *qkv, heads = tensors[:4]
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in qkv)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
