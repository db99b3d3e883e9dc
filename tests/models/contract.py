# SPDX-License-Identifier: MIT
"""What every network has to do; a test class inherits `ModelContract` and names its network.

Where a test looks at the layers of the head alone, the backbone is a tiny one: tests/backbones has
the contract of the real ones.
"""

import copy

import pytest
import torch
from torch import nn

from openseg import create_model, load_weights
from openseg.losses import SegmentationLoss

CLASSES = 5


class TinyBackbone(nn.Module):
    """A convolution for each map, of strides 4, 8, 8, 8, or 4 where there is one map alone."""

    def __init__(self, channels):
        super().__init__()
        strides = (4, 8, 8, 8)[: len(channels)]
        pairs = zip(channels, strides, strict=True)
        self.maps = nn.ModuleList(nn.Conv2d(3, c, 3, s, padding=1) for c, s in pairs)

    def forward(self, images):
        return [conv(images) for conv in self.maps]


class ModelContract:
    name: str
    options: dict = {"backbone": "resnet18c"}  # noqa: RUF012 - never changed
    stride = 8
    classes = CLASSES
    one_image_trains = True  # False: a norm sees one value of an image
    aux_weights: dict = {"aux": 0.4}  # noqa: RUF012 - never changed
    compiler = "aot_eager"
    unused: tuple = ()  # beginnings of the names of parameters that have no part in the outputs

    @classmethod
    def build(cls, **options):
        torch.manual_seed(0)
        return create_model(cls.name, num_classes=CLASSES, **(cls.options | options))

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        """In eval mode; tests do not change it."""
        return cls.build().eval()

    @pytest.fixture(scope="class")
    @classmethod
    def small(cls, model):
        """The same on a backbone that is quick to run and to trace."""
        model = copy.deepcopy(model)
        model.backbone = TinyBackbone(model.backbone.channels)
        return model

    def images(self, batch=2, channels=3, size=(65, 65)):
        return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))

    def inputs(self, model, *arguments, **options):
        """`images`, and their labels where the network wants them."""
        images = self.images(*arguments, **options)
        return (images, (images[:, 0] > 0).long()) if model.needs_labels else (images,)

    @pytest.mark.parametrize("size", [(65, 65), (64, 64), (50, 83), (33, 34)])
    def test_any_size_gives_logits_at_the_feature_size(self, model, size):
        with torch.no_grad():
            output = model(*self.inputs(model, 1, size=size))
        height, width = output.main.shape[2:]
        assert output.main.shape[:2] == (1, self.classes)
        assert output.aux.keys() == self.aux_weights.keys() == set(model.aux_outputs)
        assert abs(height - size[0] / self.stride) <= 1.5
        assert abs(width - size[1] / self.stride) <= 1.5

    def test_a_step_lowers_the_loss_and_reaches_every_parameter(self, small):
        model = copy.deepcopy(small).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0  # so that the losses before and after can be compared
        criterion = SegmentationLoss(aux_weights=self.aux_weights)
        images, *labels = self.inputs(model)
        target = (images[:, 0] > 0).long()
        target[:, :5] = 255
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        before = criterion(model(images, *labels), target)["loss"]
        before.backward()
        assert all(p.grad is not None for p in model.backbone.maps[-1].parameters())
        for key, parameter in model.named_parameters():
            if key.startswith("backbone."):
                continue
            assert (parameter.grad is None) == key.startswith(self.unused), key
            assert parameter.grad is None or parameter.grad.isfinite().all(), key
        optimizer.step()
        with torch.no_grad():
            assert criterion(model(images, *labels), target)["loss"] < before

    def test_one_image_trains_or_is_refused(self, small):
        model = copy.deepcopy(small).train()
        inputs = self.inputs(model, 1, size=(33, 33))
        if not self.one_image_trains:
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                model(*inputs)
            return
        output = model(*inputs)
        sum(x.square().mean() for x in (output.main, *output.aux.values())).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    def test_other_channels(self):
        model = self.build(in_channels=4).eval()
        assert model.in_channels == 4
        with torch.no_grad():
            assert model(*self.inputs(model, 1, channels=4)).main.isfinite().all()

    def test_saved_and_loaded_is_equal(self, model, tmp_path):
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        again = create_model(**copy.deepcopy(model.arguments)).eval()
        report = load_weights(again, tmp_path / "weights.pth")
        assert report.loaded == list(model.state_dict())
        inputs = self.inputs(model, 1)
        with torch.no_grad():
            torch.testing.assert_close(again(*inputs), model(*inputs), rtol=0, atol=0)

    def test_channels_last_is_equal(self, small):
        last = copy.deepcopy(small).double().to(memory_format=torch.channels_last)
        images, *labels = self.inputs(small, 1)
        with torch.no_grad():
            known = copy.deepcopy(small).double()(images.double(), *labels)
            found = last(images.double().to(memory_format=torch.channels_last), *labels)
        torch.testing.assert_close(found, known)

    def test_bfloat16_autocast_stays_finite_and_near(self, small):
        inputs = self.inputs(small, 1)
        with torch.no_grad():
            known = small(*inputs).main
            with torch.autocast("cpu", torch.bfloat16):
                found = small(*inputs).main.float()
        assert found.isfinite().all()
        # 8 bits of mantissa through some ten layers: a few per cent of the spread.
        assert (found - known).abs().mean() < 0.05 * known.std()

    def test_compiles_without_a_break(self, small):
        inputs = self.inputs(small, 1)
        compiled = torch.compile(small, fullgraph=True, backend=self.compiler)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs), small(*inputs), rtol=1e-4, atol=1e-5)

    def test_exports_with_free_height_and_width(self, small):
        free = torch.export.Dim.DYNAMIC
        inputs = self.inputs(small, 1, size=(65, 97))
        sizes = {"images": {2: free, 3: free}, "labels": {1: free, 2: free}}
        program = torch.export.export(
            small, inputs, dynamic_shapes=dict(list(sizes.items())[: len(inputs)])
        )
        # in torch 2.11 a graph with max_pool2d is for sizes that leave the same remainder
        other = (81, 113) if torch.__version__.startswith("2.11.") else (72, 90)
        inputs = self.inputs(small, 1, size=other)
        with torch.no_grad():
            found, known = program.module()(*inputs), small(*inputs)
        torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-5)

    def test_predicts_at_the_size_of_the_images(self, model):
        if model.needs_labels:
            with pytest.raises(ValueError, match=r"needs the labels of its images: model\(images,"):
                model.predict(self.images())
            return
        images = self.images(2, size=(50, 83))
        labels, confidence = model.predict(images, confidence=True)
        assert labels.shape == confidence.shape == (2, 50, 83)
        assert labels.dtype == torch.uint8
        assert model.predict(images, size=(20, 30)).shape == (2, 20, 30)
        with torch.no_grad():
            upsampled = nn.functional.interpolate(
                model(images).main, (50, 83), mode="bilinear", align_corners=True
            )
        assert (upsampled.argmax(1) == labels).float().mean() > 0.999
