"""Requests with text, generated pictures and videos, in the forms of transformers and vLLM."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import Image as Picture
from transformers import AutoTokenizer


@dataclass(frozen=True)
class Video:
    """Frames `[frames, height, width, 3]` of bytes, which the processors don't change."""

    frames: np.ndarray
    fps: float = 2.0

    def metadata(self) -> dict[str, Any]:
        """The metadata from which both processors make timestamps."""
        count = len(self.frames)
        return {
            "fps": self.fps,
            "duration": count / self.fps,
            "total_num_frames": count,
            "frames_indices": list(range(count)),
            "video_backend": "opencv",
        }


@dataclass(frozen=True)
class Chat:
    """One message of the user: texts, pictures and videos in order."""

    parts: Sequence[str | Picture | Video]

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]

    @property
    def videos(self) -> list[Video]:
        return [part for part in self.parts if isinstance(part, Video)]

    def prompt(self, checkpoint: Path) -> str:
        """The prompt of the chat template, with one placeholder for each picture or video."""
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image" if isinstance(part, Picture) else "video"}
            for part in self.parts
        ]
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        messages = [{"role": "user", "content": content}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def for_vllm(self, checkpoint: Path) -> Any:
        """The prompt for `LLM.generate`."""
        media: dict[str, Any] = {}
        if self.pictures:
            media["image"] = self.pictures
        if self.videos:
            media["video"] = [
                (video.frames, video.metadata() | {"do_sample_frames": False}) for video in self.videos
            ]
        return {"prompt": self.prompt(checkpoint), "multi_modal_data": media}


def picture(seed: int, width: int = 64, height: int = 64) -> Picture:
    """Coloured tiles. Neighbouring patches differ."""
    tiles = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(tiles).resize((width, height), Image.Resampling.NEAREST)


def video(seed: int, frames: int = 4, width: int = 64, height: int = 64) -> Video:
    return Video(np.stack([np.asarray(picture(seed + n, width, height)) for n in range(frames)]))


TEXT = Chat(("Which way does the light go?",))
TWO_PICTURES = Chat(("First ", picture(1), " then ", picture(2, width=128, height=96), ": what changed?"))
VIDEO = Chat((video(10), "Which colours?"))
PICTURE_AND_VIDEO = Chat((picture(3), "and", video(20), "Which colours?"))
"""Not for GLM, because transformers mixes up the placeholders of a video and a picture in one prompt."""
