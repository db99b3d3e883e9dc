# SPDX-License-Identifier: MIT
import pytest
import torch

from openseg import create_model, load_weights
from openseg.losses import SegFixLoss
from openseg.models import refine_labels
from openseg.models.segfix import DIRECTIONS, MIRRORED_SCORES
from tests.models.contract import ModelContract


class TestSegFix(ModelContract):
    name = "segfix"
    options = {"backbone": "hrnet_w18"}  # noqa: RUF012 - never changed
    stride = 4
    classes = 2
    aux_weights = {"direction": 1.0}  # noqa: RUF012 - never changed


@pytest.mark.parametrize(("backbone", "stride"), [("hrnet_w18", 4), ("hrnet2x_w20", 2)])
def test_sizes_and_published_names(backbone, stride):
    model = create_model("segfix_hrnet", backbone).eval()
    with torch.no_grad():
        output = model(torch.empty(1, 3, 32, 48))
    assert output.main.shape == (1, 2, 32 // stride, 48 // stride)
    assert output.aux["direction"].shape == (1, 8, 32 // stride, 48 // stride)
    assert model.arguments["num_classes"] == model.num_classes == 2
    heads = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in model.backbone.parameters()
    )
    channels = model.backbone.channels[0]
    assert heads == 2 * (256 * channels + 2 * 256) + 256 * (2 + 8)


# Loading into tensors without storage warns that it does nothing; the names are what counts here.
@pytest.mark.filterwarnings("ignore:for .*non-meta")
def test_published_keys():
    with torch.device("meta"):
        model = create_model("segfix", "hrnet2x_w20")
    published = {}
    for key, value in model.state_dict().items():
        for ours, theirs in (("conv.conv", "0"), ("conv.norm", "1.0"), ("classifier", "2")):
            key = key.replace(f"mask_head.{ours}.", f"mask_head.{theirs}.")
            key = key.replace(f"direction_head.{ours}.", f"dir_head.{theirs}.")
        published[f"module.{key}"] = value
    assert "module.dir_head.1.0.running_var" in published
    assert "module.backbone.stage1.0.branches.1.3.conv3.weight" in published
    assert load_weights(model, published).source == "openseg.pytorch"


def test_it_is_trained_by_its_loss():
    torch.manual_seed(0)
    model = create_model("segfix", "hrnet_w18")
    target = torch.stack([torch.zeros(2, 33, 33), torch.ones(2, 33, 33), torch.ones(2, 33, 33)], 1)
    SegFixLoss(threshold=1e-6)(model(torch.randn(2, 3, 33, 33)), target)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_offsets_of_known_logits():
    """Boundary where its logit is greater; the step is that of the greatest direction."""
    model = create_model("segfix", "hrnet_w18")
    mask = torch.tensor([[[0.0, 0.0, 0.0]], [[1.0, -1.0, 2.0]]])[None]
    direction = torch.zeros(1, 8, 1, 3)
    direction[0, 3, 0, 0] = direction[0, 5, 0, 1] = direction[0, 6, 0, 2] = 1.0
    model.forward = lambda _: type("Output", (), {"main": mask, "aux": {"direction": direction}})
    offsets = model.predict_offsets(torch.zeros(1, 3, 4, 12), size=(1, 3))
    assert offsets.permute(0, 2, 3, 1).tolist() == [[[[-1, 1], [0, 0], [1, 0]]]]


def test_a_boundary_is_where_the_upsampled_probability_says_so():
    """Not the upsampled logit, which would be below zero at the second of five places."""
    model = create_model("segfix", "hrnet_w18")
    mask = torch.tensor([[[0.0, 0.0]], [[1.0, -10.0]]])[None]
    output = type("Output", (), {"main": mask, "aux": {"direction": torch.zeros(1, 8, 1, 2)}})
    model.forward = lambda _: output
    offsets = model.predict_offsets(torch.zeros(1, 3, 4, 8), size=(1, 5))
    assert offsets[0, 1].tolist() == [[-1, -1, 0, 0, 0]]


def test_directions_are_the_nearest_of_their_angles():
    angles = torch.deg2rad(torch.arange(-180.0, 180.0, 45.0))
    steps = torch.stack([angles.sin(), angles.cos()], dim=1).sign() * (
        torch.stack([angles.sin(), angles.cos()], dim=1).abs() > 0.1
    )
    assert steps.int().tolist() == [list(step) for step in DIRECTIONS]


def test_scores_that_trade_places_are_those_of_left_and_right():
    others = [DIRECTIONS.index((down, -right)) for down, right in DIRECTIONS]
    pairs = [(2 + one, 2 + other) for one, other in enumerate(others) if one < other]
    assert pairs == list(MIRRORED_SCORES)


def test_labels_are_copied_from_twice_the_offset_and_from_the_border_at_most():
    labels = torch.tensor([[[7, 8, 9, 3], [1, 2, 5, 6], [4, 0, 255, 20]]])
    offsets = torch.zeros(1, 2, 3, 4, dtype=torch.int64)
    offsets[0, :, 0, 0] = torch.tensor([1, 1])  # from row 2, column 2
    offsets[0, :, 2, 3] = torch.tensor([-1, -1])  # from row 0, column 1
    offsets[0, :, 1, 0] = torch.tensor([0, -1])  # over the left border: its own column
    offsets[0, :, 0, 2] = torch.tensor([1, 1])  # to the corner
    known = labels.clone()
    known[0, 0, 0], known[0, 2, 3], known[0, 0, 2] = 255, 8, 20
    assert torch.equal(refine_labels(labels, offsets), known)
    assert torch.equal(refine_labels(labels.byte(), offsets), known.byte())


def test_no_label_is_invented():
    """Ids 0 and 200 side by side: bilinear sampling would give some in between."""
    generator = torch.Generator().manual_seed(0)
    labels = 200 * torch.randint(0, 2, (2, 17, 23), generator=generator)
    offsets = torch.randint(-1, 2, (2, 2, 17, 23), generator=generator)
    refined = refine_labels(labels, offsets, scale=3)
    assert set(refined.unique().tolist()) == {0, 200}
    rows, columns = 5 + 3 * offsets[1, 0, 5, 7], 7 + 3 * offsets[1, 1, 5, 7]
    assert refined[1, 5, 7] == labels[1, rows, columns]


def test_offsets_that_do_not_fit():
    labels = torch.zeros(1, 4, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"integers \[1, 2, 4, 5\].*\(1, 4, 5\), got"):
        refine_labels(labels, torch.zeros(1, 2, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="float32"):
        refine_labels(labels, torch.zeros(1, 2, 4, 5))
