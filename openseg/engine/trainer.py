# SPDX-License-Identifier: MIT
"""One optimizer step, and all of the state that the next one depends on.

A step takes the images of this process and splits them into micro batches, so memory is chosen
without changing the batch. The loss is the mean over micro batches and processes of their own
means over pixels, as the published networks were trained on several GPUs.
"""

from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from openseg.engine.determinism import random_state, set_random_state
from openseg.engine.distributed import Process, gather
from openseg.engine.schedules import Schedule, set_learning_rate
from openseg.errors import CheckpointError

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """A network in training.

    model: images [B, C, H, W] -> the output that `criterion` understands. It is moved to the device
        of `process`, and its batch norms are synchronised where several GPUs take part.
    criterion: (output, labels [B, H, W]) -> {"loss": the scalar to minimise, and its parts}.
    optimizer: its groups have a `base_lr`, which `schedule` scales.
    micro_batch_size: images in a forward pass; by default all that `step` gets.
    clip_grad_norm: largest norm of the gradient.
    freeze_norm: batch norms use and keep the running statistics that they have.
    ema_decay: keep averaged parameters in `averaged`. The running statistics of batch norms, which
        are averages already, are copied.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        process: Process,
        *,
        micro_batch_size: int | None = None,
        amp: Literal["none", "bf16", "fp16"] = "none",
        clip_grad_norm: float | None = None,
        ema_decay: float | None = None,
        freeze_norm: bool = False,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        self.process = process
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = self._prepare(model)
        self.criterion = criterion.to(process.device)
        self.optimizer = optimizer
        self.schedule = schedule
        self.micro_batch_size = micro_batch_size
        self.amp_dtype = AMP_DTYPES[amp]
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=amp == "fp16")
        self.clip_grad_norm = clip_grad_norm
        self.freeze_norm = freeze_norm
        self.averaged: AveragedModel | None = None
        if ema_decay is not None:
            average = get_ema_multi_avg_fn(ema_decay)
            self.averaged = AveragedModel(self.model, multi_avg_fn=average).requires_grad_(False)
        self.network = self._wrap(compile)
        self.iteration = 0
        self.samples = 0  # images taken so far, by all processes together

    def _prepare(self, model: Any) -> nn.Module:
        if self.process.world_size > 1 and self.process.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model.to(self.process.device, memory_format=self.memory_format)

    def _wrap(self, compile: bool) -> Any:
        network: Any = self.model
        if self.process.world_size > 1:
            on_gpu = self.process.device.type == "cuda"
            network = DistributedDataParallel(
                network, device_ids=[self.process.device] if on_gpu else None
            )
        return torch.compile(network) if compile else network

    @property
    def best_model(self) -> nn.Module:
        """The network to validate and to use: averaged where averages are kept."""
        return self.model if self.averaged is None else self.averaged.module

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first group in the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Take one optimizer step; returns the losses as scalars on the device, without waiting.

        images: [B, C, H, W], the share of this process. labels: [B, H, W].
        """
        set_learning_rate(self.optimizer, self.schedule(self.iteration))
        self._train_mode()
        size = self.micro_batch_size or len(images)
        micro_batches = list(zip(images.split(size), labels.split(size), strict=True))
        losses: dict[str, Tensor] = {}
        for index, (micro_images, micro_labels) in enumerate(micro_batches, start=1):
            exchanges = index == len(micro_batches) or self.process.world_size == 1
            with nullcontext() if exchanges else self.network.no_sync():
                parts = self._losses(micro_images, micro_labels)
                self.scaler.scale(parts["loss"] / len(micro_batches)).backward()
            for name, value in parts.items():
                share = value.detach() / len(micro_batches)
                losses[name] = losses[name] + share if name in losses else share
        self._update()
        self.iteration += 1
        self.samples += len(images) * self.process.world_size
        return losses

    def _train_mode(self) -> None:
        self.model.train()
        for module in self.model.modules() if self.freeze_norm else ():
            if getattr(module, "running_mean", None) is not None:
                module.eval()

    def _losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        device = self.process.device
        images = images.to(device, non_blocking=True, memory_format=self.memory_format)
        labels = labels.to(device, non_blocking=True)
        enabled = self.amp_dtype is not None
        with torch.autocast(device.type, dtype=self.amp_dtype, enabled=enabled):
            return self.criterion(self.network(images), labels)

    def _update(self) -> None:
        if self.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def weights(self) -> dict[str, Any]:
        """The parameters and buffers for a checkpoint: `state_dict` and `ema`."""
        averaged = None if self.averaged is None else self.averaged.module.state_dict()
        return {"state_dict": self.model.state_dict(), "ema": averaged}

    def broken_weights(self) -> str | None:
        """What a checkpoint would hold that is not finite, in any process: a name, or None."""
        states = [state for state in self.weights().values() if state is not None]
        named = [item for state in states for item in state.items()]
        finite = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist()
        broken = [name for (name, _), is_finite in zip(named, finite, strict=True) if not is_finite]
        # The running statistics of the processes may differ, and all of them have to decide alike.
        return next(filter(None, gather(broken[0] if broken else None)), None)

    def training_state(self) -> dict[str, Any]:
        """The rest of what `resume` needs. Every process must call it: each has random numbers."""
        return {
            "iteration": self.iteration,
            "samples": self.samples,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema_updates": 0 if self.averaged is None else int(self.averaged.n_averaged),
            "random": gather(random_state(self.process.device)),
        }

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Go on bit for bit where the run that saved the checkpoint was.

        Learning rates and the other options of the optimizer stay as this run has them. With
        another number of processes the random numbers of dropout start anew.
        """
        state = checkpoint["training"]
        try:
            self.model.load_state_dict(checkpoint["state_dict"])
            self._load_optimizer(state["optimizer"])
            if self.averaged is not None:
                self.averaged.module.load_state_dict(checkpoint["ema"] or checkpoint["state_dict"])
                self.averaged.n_averaged.fill_(state["ema_updates"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit this network: {error}; resume with the configuration "
                "of the run, or take its weights alone with model.weights"
            ) from error
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.iteration, self.samples = state["iteration"], state["samples"]
        if len(state["random"]) == self.process.world_size:
            set_random_state(state["random"][self.process.rank], self.process.device)

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Restore the momentum, and no option: those are what the configuration says now."""
        groups = self.optimizer.param_groups
        options = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        self.optimizer.load_state_dict(state)
        for group, own in zip(self.optimizer.param_groups, options, strict=True):
            group.update(own)
