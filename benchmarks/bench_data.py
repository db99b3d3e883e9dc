# SPDX-License-Identifier: MIT
"""Images a second of the data path on one core: `python benchmarks/bench_data.py [--record]`.

For each data set drawn images of its usual size are written to files, read and augmented as its
configuration says; the floor is what reading alone takes. The resizing is also timed against
resizing the whole image with torch and cropping then, after both have been found equal within one
grey level.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from _timing import append, machine
from PIL import Image

from openseg.build import build_train_transform
from openseg.config import load_config
from openseg.data import ContextScenes, FolderDataset
from openseg.data.drawing import save_label_png
from openseg.data.resampling import Window, resize_image

FRAME, RESIZED, WINDOW = (1024, 2048), (1536, 3072), Window(400, 900, 512, 1024)
# set: a usual size of its images, suffix of their files, configuration with its augmentation
SETS = {
    "cityscapes": ((1024, 2048), ".png", "cityscapes/ocrnet_r101"),
    "ade20k": ((512, 683), ".jpg", "ade20k/ocrnet_r101"),
    "pascal_context": ((375, 500), ".jpg", "pascal_context/ocrnet_r101"),
    "coco_stuff_10k": ((480, 640), ".jpg", "coco_stuff_10k/ocrnet_r101"),
    "pascal_voc": ((375, 500), ".jpg", "pascal_voc/ocrnet_r101"),
    "lip": ((400, 250), ".jpg", "lip/ce2p_ocrnet_r101"),
    "mapillary": ((2448, 3264), ".jpg", "mapillary/ocrnet_b_hrnet_w48"),
    "celeba": ((1024, 1024), ".jpg", "celeba/ocrnet_hrnet_w48"),
    "camvid": ((360, 480), ".jpg", "camvid/ocrnet_r18"),
}


def milliseconds(call: Callable[[int], object], repeats: int) -> float:
    """Median time of call(0), call(1), …"""
    call(0)
    times = []
    for index in range(repeats):
        start = time.perf_counter()
        call(index)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def drawn_files(
    root: Path, size: tuple[int, int], suffix: str, count: int, half_size: bool
) -> FolderDataset:
    scenes = ContextScenes(size, count)
    for folder in ("images", "labels"):
        (root / folder / "train").mkdir(parents=True)
    for index in range(count):
        scene = scenes.load(index)
        image = Image.fromarray(scene.image)
        image.save(root / "images" / "train" / f"{scene.name}{suffix}", quality=90)
        label = root / "labels" / "train" / f"{scene.name}.png"
        save_label_png(label, scene.label, scenes.info.palette)
    return FolderDataset(root, "train", scenes.info.classes, half_size=half_size)


def time_set(name: str, count: int = 4, repeats: int = 24) -> dict[str, object]:
    size, suffix, recipe = SETS[name]
    config = load_config(recipe, ["data.root=."])
    with tempfile.TemporaryDirectory() as folder:
        dataset = drawn_files(Path(folder), size, suffix, count, config.data.half_size)
        transform = build_train_transform(config, dataset.info)
        samples = [dataset.load(index) for index in range(count)]
        read = milliseconds(lambda i: dataset.load(i % count), repeats)
    augment = milliseconds(
        lambda i: transform(samples[i % count], np.random.default_rng(i)), repeats
    )
    return {
        "set": name,
        "size": size,
        "crop": transform.crop_size,
        "read_ms": round(read, 2),
        "augment_ms": round(augment, 2),
        "images_per_second": round(1000 / (read + augment), 1),
    }


def resize_whole(image: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, RESIZED, mode="bicubic").round_().clamp_(0, 255)
    top, left, height, width = WINDOW
    crop = resized[0, :, top : top + height, left : left + width]
    return crop.permute(1, 2, 0).to(torch.uint8).numpy()


def compare_resizing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*FRAME, 3), dtype=np.uint8)
    ours = resize_image(image, RESIZED, WINDOW, "cubic").astype(int)
    if np.abs(ours - resize_whole(image)).max() > 1:
        raise SystemExit("the two resizings differ: no times for a wrong result")
    whole = milliseconds(lambda _: resize_whole(image), 3)
    window = milliseconds(lambda _: resize_image(image, RESIZED, WINDOW, "cubic"), 10)
    print(f"cubic, 2048×1024 to 3072×1536, crop 1024×512: whole image {whole:.0f} ms, ", end="")
    print(f"window {window:.0f} ms, ratio {whole / window:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--record", action="store_true", help="append to results/data.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for side in (64, 128, 256):
        time_ms = milliseconds(ContextScenes((side, side)).load, 100)
        print(f"scene {side}×{side}: {time_ms:.2f} ms, {1000 / time_ms:.0f} a second")
    compare_resizing()
    facts = machine("cpu")
    for name in options.sets:
        record = time_set(name)
        height, width = record["size"]
        print(
            f"{name:<15}{f'{width}×{height}':<11}read {record['read_ms']:6.1f} ms, augment "
            f"{record['augment_ms']:6.1f} ms: {record['images_per_second']:6.1f} images a second"
        )
        if options.record:
            append({**facts, **record}, "data")


if __name__ == "__main__":
    main()
