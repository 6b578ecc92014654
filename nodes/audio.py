"""MultiTalk Audio Embeds: from speakers to audio features and the sound of the video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from comfy_api.latest import io

from ..multitalk_core.errors import InputError
from ..multitalk_core.inputs.speech import listen
from ..multitalk_core.inputs.timeline import Mode, arrange_recordings
from ..multitalk_core.model.lrope import MAX_SPEAKERS
from .host.speech import VoiceEncoder
from .sockets import AudioEmbeds, Speaker, Speakers, SpokenAudio, Wav2Vec2


class MultiTalkAudioEmbeds(io.ComfyNode):
    """MultiTalk Audio Embeds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_AudioEmbeds",
            display_name="MultiTalk Audio Embeds",
            category="MultiTalk",
            description=(
                "Places the voices of all speakers on one timeline and computes their Wav2Vec2 "
                "features, 25 a second. Each voice is converted to 16 kHz mono and -23 LUFS "
                "first. The video will be as long as the timeline."
            ),
            search_aliases=["multitalk", "wav2vec2", "audio features"],
            inputs=[
                Wav2Vec2.Input("wav2vec2", tooltip="The voice encoder, from Load Wav2Vec2."),
                io.Combo.Input(
                    "mode",
                    options=["together", "in_turn"],
                    default="together",
                    tooltip=(
                        "together: each voice begins at the start time of its speaker. in_turn: "
                        "each voice begins after the previous one has ended; the start time is "
                        "the pause before it."
                    ),
                ),
                io.Autogrow.Input(
                    "speakers",
                    template=io.Autogrow.TemplatePrefix(
                        Speakers.Input("speaker", tooltip="A speaker, from MultiTalk Speaker."),
                        prefix="speaker",
                        min=1,
                        max=MAX_SPEAKERS,
                    ),
                ),
            ],
            outputs=[
                AudioEmbeds.Output(
                    display_name="audio_embeds",
                    tooltip="The audio features, for MultiTalk Sampler or MultiTalk Guider.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, wav2vec2: VoiceEncoder, mode: Mode, speakers: Mapping[str, Sequence[Speaker]]
    ) -> io.NodeOutput:
        people = [person for name in sorted(speakers) for person in speakers[name] or ()]
        if not 1 <= len(people) <= MAX_SPEAKERS:
            raise InputError(
                f"There are {len(people)} speakers; MultiTalk needs 1 or 2. "
                "Connect one or two MultiTalk Speaker nodes."
            )
        arrangement = arrange_recordings(
            [
                person.recording._replace(name=f"Speaker {number}'s voice")
                for number, person in enumerate(people, start=1)
            ],
            mode=mode,
            starts=[person.start for person in people],
            memory=wav2vec2.memory,
        )
        timeline = arrangement.timeline
        spoken = SpokenAudio(
            speech=listen(timeline.tracks, wav2vec2, num_frames=timeline.num_frames),
            regions=tuple(person.region for person in people),
            timeline=timeline,
            sound=arrangement.sound,
            encoder=wav2vec2.name,
        )
        return io.NodeOutput(spoken)
