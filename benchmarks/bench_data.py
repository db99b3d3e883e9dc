# SPDX-License-Identifier: MIT
"""Samples a second of the data path on one core: `python benchmarks/bench_data.py`.

The augmentation is timed against resizing the whole image with torch and cropping then, after both
have been found equal within one grey level.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from openseg.data import ContextScenes, Sample, TrainTransform
from openseg.data.resampling import Window, resize_image

FRAME, RESIZED, WINDOW = (1024, 2048), (1536, 3072), Window(400, 900, 512, 1024)


def milliseconds(call: Callable[[int], object], repeats: int) -> float:
    """Median time of call(0), call(1), …"""
    call(0)
    times = []
    for index in range(repeats):
        start = time.perf_counter()
        call(index)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def resize_whole(image: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, RESIZED, mode="bicubic").round_().clamp_(0, 255)
    top, left, height, width = WINDOW
    crop = resized[0, :, top : top + height, left : left + width]
    return crop.permute(1, 2, 0).to(torch.uint8).numpy()


def main() -> None:
    torch.set_num_threads(1)
    for size in (64, 128, 256):
        scenes = ContextScenes((size, size))
        time_ms = milliseconds(scenes.load, 100)
        print(f"scene {size}×{size}: {time_ms:.2f} ms, {1000 / time_ms:.0f} a second")

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*FRAME, 3), dtype=np.uint8)
    label = rng.integers(0, 19, FRAME, dtype=np.uint8)
    ours = resize_image(image, RESIZED, WINDOW, "cubic").astype(int)
    if np.abs(ours - resize_whole(image)).max() > 1:
        raise SystemExit("the two resizings differ: no times for a wrong result")
    whole = milliseconds(lambda _: resize_whole(image), 3)
    window = milliseconds(lambda _: resize_image(image, RESIZED, WINDOW, "cubic"), 10)
    print(f"cubic, 2048×1024 to 3072×1536, crop 1024×512: whole image {whole:.0f} ms, ", end="")
    print(f"window {window:.0f} ms, ratio {whole / window:.1f}")
    transform, sample = TrainTransform((512, 1024)), Sample(image, label, "noise")
    crop = milliseconds(lambda seed: transform(sample, np.random.default_rng(seed)), 20)
    print(f"whole augmentation of a 2048×1024 frame, crop 1024×512: {crop:.0f} ms")


if __name__ == "__main__":
    main()
