"""Audio features: what Wav2Vec2 hears in a track, one stack of layers per video frame.

Follows `get_embedding` in MultiTalk `generate_multitalk.py` and its
`src/audio_analysis/wav2vec2.py`: the 50 Hz convolution features are resampled to the video's 25 Hz
**before** the encoder, which then works at the video's rate. `transformers`' plain model is used;
the layers are read by forward hooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2Model

from ..config import FPS
from ..errors import InputError, WeightsError
from ..files.identify import Shapes
from ..files.sizes import check_shapes, shape_of
from .voices import SAMPLE_RATE

_HEAD_DIM = 64
"""Width of an attention head in every published Wav2Vec2."""
_CONV = "feature_extractor.conv_layers."
_POSITION = "encoder.pos_conv_embed.conv."
_LENGTHS, _DIRECTIONS = (f"{_POSITION}parametrizations.weight.original{i}" for i in (0, 1))
FOLDED_POSITION = f"{_POSITION}weight"
"""The product of lengths and directions, which some files hold in their place."""
_VARIANCE_EPS = 1e-7
"""As transformers' `Wav2Vec2FeatureExtractor`."""


def load_wav2vec2(
    tensors: Mapping[str, Tensor],
    *,
    num_heads: int | None,
    source: str,
    config: Wav2Vec2Config | None = None,
) -> Wav2Vec2Model:
    """Build `transformers`' Wav2Vec2 around weights.

    Args:
        tensors: State dict under the names of `transformers`; weights of other parts are ignored.
        num_heads: Attention heads, or `None` for a width of 64 each.
        source: File name for messages.
        config: Sizes; by default they are derived from the shapes (`wav2vec2_config`).

    Returns:
        The model in float32 and eval mode, on the weights' device.

    Raises:
        WeightsError: If the weights are no Wav2Vec2, or incomplete.
    """
    if config is None:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        config = wav2vec2_config(shapes, num_heads=num_heads, source=source)
    state = dict(tensors)
    if _DIRECTIONS not in state:
        folded = state[FOLDED_POSITION].float()
        state[_DIRECTIONS] = folded
        state[_LENGTHS] = torch.linalg.vector_norm(folded, dim=(0, 1), keepdim=True)
    with torch.device("meta"):  # no random initialisation, which would take time and random numbers
        model = Wav2Vec2Model(config)
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_shapes(given, needed, source=source, what="a Wav2Vec2")
    model.load_state_dict({name: state[name].float() for name in needed}, assign=True)
    return model.requires_grad_(False).eval()


def wav2vec2_config(shapes: Shapes, *, num_heads: int | None, source: str) -> Wav2Vec2Config:
    """Derive the sizes of a Wav2Vec2 from the names and shapes of its weights.

    Strides leave no trace in a file and are those of every published model. Those with a layer norm
    after each convolution normalise before the encoder's attention ("stable"), those with one group
    norm after it.

    Raises:
        WeightsError: If the weights are no Wav2Vec2.
    """
    convs = [
        shape_of(shapes, f"{_CONV}{i}.conv.weight", source=source, rank=3)
        for i in range(max(1, _count(shapes, _CONV)))
    ]
    hidden, channels = shape_of(shapes, "feature_projection.projection.weight", source=source)
    position = shape_of(
        shapes,
        _DIRECTIONS if _DIRECTIONS in shapes else FOLDED_POSITION,
        source=source,
        rank=3,
    )
    inner = "encoder.layers.0.feed_forward.intermediate_dense.weight"
    norm_every_conv = f"{_CONV}1.layer_norm.weight" in shapes
    heads = num_heads or max(1, hidden // _HEAD_DIM)
    if convs[-1][0] != channels or hidden % heads or hidden % position[1]:
        raise WeightsError(
            f"{source} is no Wav2Vec2 file that can be read (width {hidden} with {heads} heads and "
            f"position groups of {position[1]}, after {len(convs)} convolutions to {channels}). "
            "Get chinese-wav2vec2-base as safetensors (Kijai/wav2vec2_safetensors)."
        )
    return Wav2Vec2Config(
        hidden_size=hidden,
        num_hidden_layers=_count(shapes, "encoder.layers."),
        num_attention_heads=heads,
        intermediate_size=shape_of(shapes, inner, source=source)[0],
        conv_dim=[conv[0] for conv in convs],
        conv_kernel=[conv[2] for conv in convs],
        conv_stride=[5, *[2] * (len(convs) - 1)],
        num_feat_extract_layers=len(convs),
        conv_bias=f"{_CONV}0.conv.bias" in shapes,
        feat_extract_norm="layer" if norm_every_conv else "group",
        do_stable_layer_norm=norm_every_conv,
        num_conv_pos_embeddings=position[2],
        num_conv_pos_embedding_groups=hidden // position[1],
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
    )


def audio_features(model: Wav2Vec2Model, track: Tensor, *, tail_frames: int = 0) -> Tensor:
    """Give the encoder's layers for every video frame of a track.

    Args:
        model: A Wav2Vec2 in eval mode.
        track: One speaker's sound, `(N,)` at 16 kHz.
        tail_frames: Video frames of silence heard after the track; they do not change its
            normalisation.

    Returns:
        Features `(T, L, C)` float32 on the track's device, T = the track's whole video frames +
        `tail_frames`.

    Raises:
        InputError: If the track is shorter than one video frame.
    """
    num_frames = num_feature_frames(len(track) + tail_frames * SAMPLE_RATE // FPS)
    if num_feature_frames(len(track)) < 1:
        raise InputError(
            f"A track of {len(track)} samples is shorter than one video frame (640 samples)."
        )
    sound = normalized_track(track, tail_frames=tail_frames).to(model.device, model.dtype)
    with torch.no_grad():
        heard = conv_features(model, sound, num_frames=num_frames)
        layers = encoder_layers(model, heard)
    return torch.stack(layers, dim=2)[0].float().to(track.device)


def num_feature_frames(num_samples: int) -> int:
    """Give the features of so many samples: the whole video frames, by upstream's arithmetic."""
    return int(num_samples / SAMPLE_RATE * FPS)


def normalized_track(track: Tensor, *, tail_frames: int = 0) -> Tensor:
    """Give a track zero mean and unit variance, and silence of the same scale after it."""
    mean, variance = track.float().mean(), track.float().var(correction=0)
    silence = track.new_zeros(tail_frames * SAMPLE_RATE // FPS)
    return (torch.cat((track, silence)).float() - mean) / torch.sqrt(variance + _VARIANCE_EPS)


def conv_features(model: Wav2Vec2Model, sound: Tensor, *, num_frames: int | None) -> Tensor:
    """Give the convolution features of a normalised sound `(N,)`, `(1, T, C)`.

    `num_frames` resamples them linearly in time, first and last kept in place; `None` leaves them
    at 50 Hz.
    """
    features: Tensor = model.feature_extractor(sound[None])
    if num_frames is not None:
        features = functional.interpolate(
            features, size=num_frames, mode="linear", align_corners=True
        )
    return features.transpose(1, 2)


def encoder_layers(model: Wav2Vec2Model, features: Tensor) -> list[Tensor]:
    """Give each encoder layer's output `(B, T, C)`, the last as the encoder leaves it."""
    layers: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        layers.append(output[0] if isinstance(output, tuple) else output)

    projected, _ = model.feature_projection(features)
    with ExitStack() as hooks:
        for layer in model.encoder.layers:
            hooks.callback(layer.register_forward_hook(keep).remove)
        last = model.encoder(projected).last_hidden_state  # after the final norm of a stable model
    return [*layers[:-1], last]


def _count(shapes: Shapes, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})
