"""Windows of audio features and their projection."""

from __future__ import annotations

import pytest
import torch

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.model.audio_tokens import (
    AudioProjection,
    first_frame,
    join_speakers,
    later_frames,
    window_features,
)
from comfyui_multitalk.multitalk_core.model.layers import TorchOps
from comfyui_multitalk.tests.support.transformer import AUDIO, draw_weights


def _numbered(num_frames: int) -> torch.Tensor:
    return torch.arange(num_frames, dtype=torch.float32).view(-1, 1, 1)


def test_window_features_edges_repeat() -> None:
    windows = window_features(_numbered(6), start=0, stop=8)[..., 0, 0]
    assert windows[0].tolist() == [0, 0, 0, 1, 2]
    assert windows[3].tolist() == [1, 2, 3, 4, 5]
    assert windows[7].tolist() == [5, 5, 5, 5, 5]


def test_window_features_segment_equals_rows_of_the_whole() -> None:
    features = torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0))
    whole = window_features(features, start=0, stop=20)
    assert torch.equal(window_features(features, start=7, stop=16), whole[7:16])


def test_window_features_empty_voice_is_refused() -> None:
    with pytest.raises(InputError, match="no audio feature"):
        window_features(torch.zeros(0, 2, 3), start=0, stop=5)


def test_later_frames_take_eight_features_around_their_four_video_frames() -> None:
    windows = window_features(_numbered(13), start=0, stop=13).unsqueeze(0)
    assert first_frame(windows)[0, 0].tolist() == [0, 0, 0, 1, 2]
    assert later_frames(windows)[0, 1].tolist() == [3, 4, 5, 6, 7, 8, 9, 10]


def test_audio_projection_single_frame_gives_single_latent_frame() -> None:
    projection = draw_weights(AudioProjection(AUDIO, ops=TorchOps))
    assert projection(torch.zeros(2, 1, 5, 2, 8)).shape == (2, 1, 3, 10)


def test_audio_projection_speakers_do_not_mix() -> None:
    projection = draw_weights(AudioProjection(AUDIO, ops=TorchOps))
    windows = torch.randn(2, 9, 5, 2, 8, generator=torch.Generator().manual_seed(0))
    tokens = join_speakers(projection(windows))
    assert tokens.shape == (1, 3, 6, 10)
    for i_speaker in range(2):
        alone = projection(windows[i_speaker : i_speaker + 1])[0]
        part = tokens[0, :, 3 * i_speaker : 3 * i_speaker + 3]
        torch.testing.assert_close(part, alone, atol=1e-6, rtol=0)


def test_audio_projection_wrong_wav2vec2_names_both_sizes() -> None:
    projection = draw_weights(AudioProjection(AUDIO, ops=TorchOps))
    with pytest.raises(InputError, match=r"24 layers of width 1024.*made for 2 layers of width 8"):
        projection(torch.zeros(1, 5, 5, 24, 1024))


def test_audio_projection_length_not_4n_plus_1_is_refused() -> None:
    with pytest.raises(InputError, match="8 video frames"):
        draw_weights(AudioProjection(AUDIO, ops=TorchOps))(torch.zeros(1, 8, 5, 2, 8))
