"""Films and strips of rollouts."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from priorvla.deployment import videos
from priorvla.deployment.videos import write_video


def brightening(count: int, height: int, width: int) -> np.ndarray:
    frames = np.linspace(20, 230, count).astype(np.uint8)
    return np.broadcast_to(frames[:, None, None, None], (count, height, width, 3)).copy()


def test_a_film_holds_every_frame_in_order_at_its_rate(tmp_path: Path) -> None:
    frames = brightening(12, 33, 40)  # an odd height, which H.264 does not take
    file = write_video(tmp_path / "folder" / "film.mp4", frames, fps=20)
    if file.suffix == ".gif":
        pytest.skip("this PyAV has no H.264 encoder")
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 20
        decoded = [frame.to_ndarray(format="rgb24")[:33, :40] for frame in container.decode(stream)]
    assert len(decoded) == 12
    np.testing.assert_allclose(np.stack(decoded).mean((1, 2, 3)), frames.mean((1, 2, 3)), atol=6)
    assert [path.name for path in file.parent.iterdir()] == ["film.mp4"]


def test_without_an_encoder_the_film_is_a_gif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "CODEC", "no-such-codec")
    file = write_video(tmp_path / "film.mp4", brightening(5, 8, 8), fps=20)
    assert file == tmp_path / "film.gif"
    with Image.open(file) as picture:
        assert picture.n_frames == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)]
)
def test_anything_but_frames_is_refused_and_leaves_no_file(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(T, height, width, 3\) uint8"):
        write_video(tmp_path / "film.mp4", frames, fps=20)
    assert list(tmp_path.iterdir()) == []
