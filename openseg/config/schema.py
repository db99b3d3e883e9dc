# SPDX-License-Identifier: MIT
"""Every option of a run with its default and, as the comment behind it, what it means.

The comments are printed by `python -m openseg.train --help`. Sizes are (height, width) in pixels.
"""

import dataclasses
import inspect
import re
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

DatasetName = Literal[
    "scenes",
    "camvid",
    "folder",
    "cityscapes",
    "ade20k",
    "lip",
    "pascal_context",
    "pascal_voc",
    "coco_stuff_10k",
]


def _cross_entropy() -> dict[str, float]:
    return {"cross_entropy": 1.0}


@dataclass
class ModelConfig:
    """The network; its number of classes comes from the data."""

    name: str = "ocrnet"  # network, one of openseg.list_models()
    backbone: str = "resnet101c"  # resnet18c, resnet50c, resnet101c, …
    variant: str = "openseg"  # published form of the network
    output_stride: int = 8  # input size over feature size: 8 or 16
    multi_grid: list[int] | None = None  # ResNets: factors on the dilation of the last stage
    align_corners: bool | None = None  # of all upsampling; null: as its variant was published
    in_channels: int = 3  # channels of an image
    weights: str | None = None  # file of parameters to start from; no resume: iteration 0
    weights_source: str = "auto"  # layout of that file; auto finds out


@dataclass
class DataConfig:
    """Where images come from and what is done to them before the network."""

    name: DatasetName = "scenes"  # data set
    root: str | None = None  # its folder; scenes are drawn and need none
    train_split: str = "train"  # split to train on, or several: train+val, train+coarse
    val_split: str = "val"  # split to validate on
    train_list: str | None = None  # text file of names: train on these samples of the split alone
    val_list: str | None = None  # the same for validation
    background: bool = False  # pascal_context: the background is a class of its own, the 60th
    classes: list[str] | None = None  # folder: names of the classes, by id; null reads the folder's
    id_map: dict[int, int] | None = None  # folder: {value in the file: id or 255}; null: as it is
    half_size: bool = False  # folder: read images and labels at half of the images' size
    scene_size: tuple[int, int] = (128, 128)  # scenes: size of an image
    scene_length: int = 1000  # scenes: images in the training split
    scene_val_length: int = 100  # scenes: images in the validation split
    crop_size: tuple[int, int] = (512, 512)  # size of a training image, cropped and padded
    order: Literal["resize_first", "flip_first"] = "resize_first"  # when to mirror
    fixed_size: tuple[int, int] | None = None  # of a training image before the random resize
    min_side: int | None = None  # or of its shorter side
    scale_range: tuple[float, float] = (0.5, 2.0)  # random resize before the crop
    scale_step: float | None = None  # between the scales to draw from; null: any of the range
    long_side: int | None = None  # the longer side at scale 1; null: as it is
    aspect_range: tuple[float, float] = (0.9, 1.1)  # random change of width over height
    interpolation: Literal["cubic", "linear"] = "cubic"  # of images in that resize
    flip: bool = True  # mirror half of the images
    brightness: int = 10  # largest random shift of the brightness, in 1/255
    padding: Literal["random", "right_down"] = "random"  # where a small image is padded
    offsets: str | None = None  # segfix: folder to keep its targets in; null: computed each time
    instances: bool = False  # segfix: borders of instances too; of cityscapes alone
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # after the division
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])  # after the division
    divisor: float = 255.0  # pixel values are divided by it first
    channel_order: Literal["RGB", "BGR"] = "RGB"  # order that the network sees
    workers: int = 2  # loader processes for each training process; 0 loads in the loop


@dataclass
class TrainConfig:
    """The optimisation. `batch_size` is the total: it does not change with the number of GPUs."""

    iterations: int = 40000  # optimizer steps
    batch_size: int = 8  # images in a step, over all processes and micro batches
    micro_batch_size: int | None = None  # images in a forward pass of a process; null: all of its
    optimizer: Literal["sgd", "adamw"] = "sgd"  # sgd in the published recipes
    lr: float = 0.01  # learning rate of the backbone at the start
    head_lr_factor: float = 1.0  # everything but the backbone learns this much faster
    momentum: float = 0.9  # of SGD
    weight_decay: float = 0.0005  # of every parameter
    power: float = 0.9  # lr · (1 - iteration / iterations) ^ power
    warmup_iterations: int = 0  # iterations in which lr rises to the schedule
    warmup: Literal["linear", "quartic"] = "linear"  # how it rises: ratio or ratio^4
    clip_grad_norm: float | None = None  # largest norm of the gradient of a step
    ema: float | None = None  # decay of averaged weights, which are then validated and used
    amp: Literal["none", "bf16", "fp16"] = "none"  # precision of the forward pass; fp16 needs CUDA
    freeze_norm: bool = False  # batch norms keep the statistics of model.weights
    channels_last: bool = True  # memory format of images and weights
    compile: bool = False  # torch.compile the network
    seed: int = 304  # of weights, order and augmentation
    deterministic: bool = False  # the same result bit for bit, at some cost in speed


@dataclass
class LossConfig:
    """Of the main logits the losses in `main`, each with its weight; of others cross entropy.

    The network segfix wants main={segfix: 1}, which counts both of its outputs.
    """

    main: dict[str, float] = field(default_factory=_cross_entropy)  # or focal, dice, lovasz, rmi
    aux_weights: dict[str, float] = field(default_factory=lambda: {"aux": 0.4})  # of other heads
    class_weights: list[float] | None = None  # of cross entropy and focal, one for each class
    class_weights_of: str | None = None  # the same by name, as published for it: cityscapes
    label_smoothing: float = 0.0  # share of the target given to all classes alike
    focal_gamma: float = 2.0  # power of the doubt that weighs a pixel
    rmi_weight: float = 0.5  # of its cross entropy; the rest is for the neighbourhoods
    rmi_radius: int = 3  # side of a neighbourhood
    rmi_stride: int = 3  # pixels pooled to one before
    ohem_thresh: float | None = None  # main loss of pixels below this probability alone; null: all
    ohem_min_kept: int = 100_000  # but of at least so many pixels of a micro batch
    ohem_variant: Literal["openseg", "ocnet"] = "openseg"  # whose published rule for limit and mean
    ohem_aux: bool = False  # the same for the other heads, which otherwise see all pixels


@dataclass
class ValConfig:
    """Validation during training, on whole images of `data.val_split`."""

    every: int = 1000  # iterations between validations; the end of training has one in any case
    mode: Literal["whole", "slide"] = "whole"  # one pass over the image, or sliding windows
    crop_size: tuple[int, int] | None = None  # slide: size of a window; null: data.crop_size
    stride: tuple[int, int] | None = None  # slide: step of the window; null: its size
    slide_from: float = 1.0  # slide: smaller scales pass whole
    fixed_size: tuple[int, int] | None = None  # images are resized to it first, cubic
    min_side: int | None = None  # or until their shorter side has this length
    multiple: int = 1  # images are padded right and below to a multiple of it
    scales: list[float] = field(default_factory=lambda: [1.0])  # logits are summed over these
    flip: bool = False  # add the logits of the mirrored image, left and right classes exchanged
    combine: Literal["logits", "exp"] = "logits"  # exp: their exponentials are summed, as by HRNet
    patience: int | None = None  # stop after this many validations without a better mean IoU


@dataclass
class RunConfig:
    """The folder of a run, and what is written into it."""

    folder: str | None = None  # folder of the run; null: runs/ and the name of the configuration
    resume: str | None = None  # auto: from the last checkpoint, if any; or a checkpoint file
    overwrite: bool = False  # delete what an earlier run left in the folder
    save_every: int | None = None  # iterations between checkpoints; null: val.every
    keep: int = 0  # older checkpoints to keep beside last.pt and best.pt
    log_every: int = 10  # iterations between lines of the log
    samples: int = 4  # validation images to draw with labels and predictions
    tensorboard: bool = False  # write event files too: pip install "openseg[tensorboard]"


@dataclass
class Config:
    """All of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    val: ValConfig = field(default_factory=ValConfig)
    run: RunConfig = field(default_factory=RunConfig)
    device: str = "auto"  # auto (CUDA where there is a GPU), cpu, cuda, cuda:1
    dry_run: bool = False  # build everything, run two iterations, report and write nothing


def fields_of(section: type = Config, prefix: str = "") -> dict[str, Any]:
    """The type of every key, such as {"train.lr": float}, in the order of the source."""
    types: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(section).items():
        if dataclasses.is_dataclass(kind):
            types |= fields_of(typing.cast(type, kind), f"{prefix}{name}.")
        else:
            types[prefix + name] = kind
    return types


def describe(section: Any = None, prefix: str = "") -> list[tuple[str, Any, str]]:
    """(key, default, comment) of every option, the comments as they stand in the source."""
    section = section or Config()
    comments = dict(re.findall(r"^    (\w+): .*  # (.*)$", inspect.getsource(type(section)), re.M))
    rows: list[tuple[str, Any, str]] = []
    for option in dataclasses.fields(section):
        value = getattr(section, option.name)
        if dataclasses.is_dataclass(value):
            rows += describe(value, f"{prefix}{option.name}.")
        else:
            rows.append((prefix + option.name, value, comments[option.name]))
    return rows
