# SPDX-License-Identifier: MIT
import pytest
import torch

from openseg.build import build_criterion, build_model, build_normalize, build_optimizer
from openseg.config import load_config
from openseg.data import ContextScenes, DatasetInfo
from openseg.errors import ConfigError
from openseg.losses import RMI, CrossEntropy, Dice, EdgeCrossEntropy, Focal, Lovasz, SegFixLoss
from openseg.models import create_model
from openseg.ops import Ohem
from openseg.weights import CONVENTIONS


@pytest.mark.parametrize(
    ("overrides", "main", "aux"),
    [
        ([], None, None),
        (["loss.ohem_thresh=0.9"], Ohem(0.9, 100_000, "openseg"), None),
        (
            ["loss.ohem_thresh=0.7", "loss.ohem_variant=ocnet", "loss.ohem_aux=true"],
            Ohem(0.7, 100_000, "ocnet"),
            Ohem(0.7, 100_000, "ocnet"),
        ),
    ],
)
def test_hard_example_mining_is_off_unless_asked_for(overrides, main, aux):
    config = load_config("scenes/ocrnet_r18", overrides)
    info = ContextScenes((32, 32), 1).info
    model, _ = build_model(config, info.num_classes)
    criterion = build_criterion(config, model, info)
    assert criterion.main.losses[0].ohem == main
    assert criterion.aux.ohem == aux


def criterion_of(*overrides, classes=4, network="fcn"):
    config = load_config("scenes/fcn_r18", overrides)
    with torch.device("meta"):
        model = create_model(network, "resnet18", classes, output_stride=16)
        names = tuple(f"class {index}" for index in range(classes))
        return build_criterion(config, model, DatasetInfo("toys", names, ((0, 0, 0),) * classes))


def test_losses_are_chosen_by_name_with_their_weights_and_options():
    words = ["loss.main={focal: 1, dice: 0.5, rmi: 2, lovasz: 1}", "loss.focal_gamma=3"]
    criterion = criterion_of(*words, "loss.rmi_radius=2", "loss.class_weights=[1, 2, 3, 4]")
    focal, dice, rmi, lovasz = criterion.main.losses
    assert criterion.main.weights == [1, 0.5, 2, 1]
    kinds = [type(loss) for loss in (focal, dice, rmi, lovasz, criterion.aux)]
    assert kinds == [Focal, Dice, RMI, Lovasz, CrossEntropy]
    assert (focal.gamma, rmi.radius, rmi.weight) == (3, 2, 0.5)
    assert len(focal.class_weights) == len(criterion.aux.class_weights) == 4


def test_published_class_weights_by_name():
    criterion = criterion_of("loss.class_weights_of=cityscapes", classes=19)
    weights = criterion.main.losses[0].class_weights
    assert weights.shape == criterion.aux.class_weights.shape == (19,)


def test_ce2p_trains_its_edges_on_edges():
    words = "loss.aux_weights={seg: 1, edge: 1, aux: 0.4}"
    assert type(criterion_of(words, network="ce2p_ocrnet").own["edge"]) is EdgeCrossEntropy


def test_segfix_has_its_own_loss():
    assert type(criterion_of("loss.main={segfix: 1}", network="segfix")) is SegFixLoss
    with pytest.raises(ConfigError, match=r"\{segfix: 1\} expected for segfix"):
        criterion_of("model.name=segfix", network="segfix")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss.main={dise: 1}"], r"loss\.main: there is no 'dise'; did you mean dice\?"),
        (["loss.main={x: 1}"], "did you mean cross_entropy or dice or focal or lovasz or rmi"),
        (["loss.class_weights_of=cityscape"], "there is no 'cityscape'; did you mean cityscapes"),
        (["loss.class_weights_of=cityscapes"], "class_weights_of: 19 numbers given, 4 expected"),
        (["loss.class_weights=[1]"], "class_weights: 1 numbers given, 4 expected"),
        (["loss.aux_weights={}"], r"loss\.aux_weights: .* outputs of fcn expected: aux"),
    ],
)
def test_mistakes_in_the_choice_of_a_loss(words, message):
    with pytest.raises(ConfigError, match=message):
        criterion_of(*words)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_head_and_backbone_are_groups_of_either_optimizer(name, kind):
    words = [f"train.optimizer={name}", "train.lr=0.01", "train.head_lr_factor=10"]
    config = load_config("scenes/fcn_r18", words)
    model, _ = build_model(config, 4)
    optimizer = build_optimizer(config, model)
    assert type(optimizer) is kind
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert groups["backbone"]["base_lr"] == 0.01
    assert groups["head"]["base_lr"] == 0.1
    assert {id(p) for p in groups["backbone"]["params"]} == {
        id(p) for p in model.backbone.parameters()
    }
    counts = [len(group["params"]) for group in groups.values()]
    assert sum(counts) == len(list(model.parameters()))


def test_weights_for_images_normalised_otherwise_are_reported(tmp_path):
    config = load_config("scenes/fcn_r18", [f"model.weights={tmp_path / 'best.pt'}"])
    model, _ = build_model(load_config("scenes/fcn_r18", []), 4)
    meta = {"normalize": CONVENTIONS["caffe"].to_dict()}
    content = {"format": "openseg", "state_dict": model.state_dict(), "ema": None, "meta": meta}
    torch.save(content, tmp_path / "best.pt")
    _, report = build_model(config, 4)
    assert report.normalize == CONVENTIONS["caffe"]
    assert "warning: data.mean, std, divisor and channel_order say Normalize(" in str(report)
    meta["normalize"] = build_normalize(config).to_dict()
    torch.save(content, tmp_path / "best.pt")
    assert build_model(config, 4)[1].warnings == []
