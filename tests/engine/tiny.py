# SPDX-License-Identifier: MIT
"""A network and data that train in milliseconds, for tests of the engine."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openseg.engine.distributed import Process
from openseg.engine.schedules import poly_schedule
from openseg.engine.trainer import Trainer

CPU = Process(torch.device("cpu"))
CLASSES = 3


class TinyNet(nn.Module):
    """Logits at full size; `norm` and `dropout` bring buffers and random numbers."""

    def __init__(self, norm: bool = True, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(self.stem(images)).relu()))


class TinyLoss(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = F.cross_entropy(logits.float(), labels)
        return {"loss": loss, "main": loss}


def make_trainer(process: Process = CPU, *, norm=True, dropout=0.2, lr=0.1, **options) -> Trainer:
    torch.manual_seed(0)
    model = TinyNet(norm, dropout)
    groups = [{"params": model.parameters(), "base_lr": lr}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=1e-3)
    return Trainer(model, TinyLoss(), optimizer, poly_schedule(8), process, **options)


def make_batch(index: int, size: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(index)
    return {
        "image": torch.randn(size, 3, 6, 5, generator=generator),
        "label": torch.randint(CLASSES, (size, 6, 5), generator=generator),
    }


def batches(start: int = 0):
    index = start
    while True:
        yield make_batch(index)
        index += 1


def assert_equal_states(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
