# SPDX-License-Identifier: MIT
"""`python -m openseg.convert`: from files with objects to safetensors that predict."""

import sys
from argparse import Namespace

import numpy as np
import pytest
import safetensors.torch
import torch

from openseg import convert, create_model, evaluate
from openseg.build import load_predictor
from openseg.engine.checkpoints import read_checkpoint
from openseg.engine.prediction import Predictor
from openseg.errors import CheckpointError, ConfigError, DataError
from openseg.weights import CONVENTIONS
from tests.tiny_checkpoint import NORMALIZE, scenes, write_checkpoint

CLASSES = ["road", "tree", "sky"]


class Trap:
    """Writes a file when it is unpickled, as code in a checkpoint could."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return create_model("fcn", "resnet18c", len(CLASSES)).eval()


def published(network):
    """Under the names of openseg.pytorch, with the norms of torch."""
    rename = {"backbone.stem": "backbone.resinit", "aux_head.conv.conv": "dsn_head.0"}
    rename |= {"aux_head.conv.norm": "dsn_head.1.0", "aux_head.classifier": "dsn_head.3"}
    rename |= {"head.conv.conv": "cls_head.0", "head.conv.norm": "cls_head.1.0"}
    rename |= {"head.classifier": "cls_head.3"}
    state = {}
    for key, value in network.state_dict().items():
        ours = next((name for name in rename if key.startswith(name)), "")
        state[f"module.{rename.get(ours, '')}{key.removeprefix(ours)}"] = value
    return state


@pytest.fixture
def foreign(network, tmp_path):
    path = tmp_path / "old.pth"
    trap = Trap(tmp_path / "sprung")
    objects = {"optimizer": trap, "history": {"loss": [1.0, trap]}, "when": np.float64(3.0)}
    torch.save({"state_dict": published(network), **objects}, path)
    return path


def run_main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
    convert.main()


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_taken_out_and_nothing_is_run(network, tmp_path, monkeypatch, capsys, zipped):
    content = {"state_dict": published(network), "trap": Trap(tmp_path / "sprung")}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=zipped)
    run_main(monkeypatch, tmp_path / "old.pth", tmp_path / "new.safetensors")
    found = safetensors.torch.load_file(tmp_path / "new.safetensors")
    known = published(network)
    assert found.keys() == known.keys()
    assert all(torch.equal(found[key], value) for key, value in known.items())
    assert not (tmp_path / "sprung").exists()
    assert f"left out, being no tensors: {open.__module__}.open" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="does not say what network"):
        read_checkpoint(tmp_path / "new.safetensors")


def test_a_named_network_predicts_with_the_published_normalisation(
    network, foreign, tmp_path, monkeypatch, capsys
):
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    target = tmp_path / "out" / "new.safetensors"
    words = ["--model", "fcn", "--backbone", "resnet18c", "--classes", tmp_path / "classes.txt"]
    run_main(monkeypatch, foreign, target, *words)
    assert not (tmp_path / "sprung").exists()
    assert "names of openseg.pytorch" in capsys.readouterr().out
    model, meta = load_predictor(target, "cpu")
    assert meta["classes"] == CLASSES
    assert meta["palette"][:2] == [[0, 0, 0], [128, 0, 0]]
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert "flip_pairs" not in meta  # unknown, which is not the same as none
    labels = Predictor(model, meta)(image).labels
    bgr = torch.from_numpy(image[:, :, ::-1] - np.array(CONVENTIONS["caffe"].mean)).float()
    assert (labels == network.predict(bgr.permute(2, 0, 1)[None])[0].numpy()).all()


def test_a_checkpoint_of_ours_keeps_all_that_it_says(tmp_path, monkeypatch):
    model = write_checkpoint(tmp_path / "best.pt")
    run_main(monkeypatch, tmp_path / "best.pt", tmp_path / "best.safetensors")
    again, meta = load_predictor(tmp_path / "best.safetensors", "cpu")
    assert again.arguments == model.arguments
    assert meta["classes"] == list(scenes().info.classes)
    assert meta["normalize"] == NORMALIZE.to_dict()
    assert meta["palette"] == [list(color) for color in scenes().info.palette]
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    with pytest.raises(ConfigError, match=r"no run of openseg.*--cfg"):
        evaluate._config(Namespace(cfg=None, checkpoint=tmp_path / "best.safetensors"))
    run_main(monkeypatch, tmp_path / "best.safetensors", tmp_path / "copy.safetensors")
    assert load_predictor(tmp_path / "copy.safetensors", "cpu")[1] == {
        **meta,
        "dataset": str(tmp_path / "best.safetensors"),
    }


@pytest.mark.parametrize("pairs", [[[1, 2]], []])
def test_classes_that_a_mirror_exchanges_are_kept(tmp_path, monkeypatch, pairs):
    write_checkpoint(tmp_path / "best.pt")
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    content["meta"]["flip_pairs"] = pairs
    torch.save(content, tmp_path / "best.pt")
    run_main(monkeypatch, tmp_path / "best.pt", tmp_path / "best.safetensors")
    run_main(monkeypatch, tmp_path / "best.safetensors", tmp_path / "copy.safetensors")
    for name in ("best", "copy"):
        model, meta = load_predictor(tmp_path / f"{name}.safetensors", "cpu")
        assert meta["flip_pairs"] == pairs
        assert Predictor(model, meta, flip=True).infer.flip_pairs == tuple(pairs)


def test_a_published_set_names_classes_colours_and_pairs(tmp_path, monkeypatch):
    network = create_model("fcn", "resnet18c", 20)
    torch.save({"state_dict": published(network)}, tmp_path / "old.pth")
    words = ["--model", "fcn", "--backbone", "resnet18c", "--classes", "lip"]
    run_main(monkeypatch, tmp_path / "old.pth", tmp_path / "new.safetensors", *words)
    meta = read_checkpoint(tmp_path / "new.safetensors")["meta"]
    assert meta["classes"][14:16] == ["left arm", "right arm"]
    assert meta["flip_pairs"] == [[14, 15], [16, 17], [18, 19]]
    words[-1] = "lipp"
    with pytest.raises(
        DataError, match=r"lipp: there is no such file, nor .* one of ade20k, .*lip"
    ):
        run_main(monkeypatch, tmp_path / "old.pth", tmp_path / "new.safetensors", *words)


def test_mmsegmentation_names_its_classes(network, tmp_path, monkeypatch):
    """Version 1.x; the tensors here have names of ours, which does not matter for that."""
    told = {"classes": tuple(CLASSES), "palette": [[1, 2, 3]] * 3}
    content = {"state_dict": network.state_dict(), "meta": {"dataset_meta": told, "epoch": 3}}
    torch.save(content, tmp_path / "a.pth")
    words = ["--model", "fcn", "--backbone", "resnet18c", "--normalize", "imagenet"]
    run_main(monkeypatch, tmp_path / "a.pth", tmp_path / "a.safetensors", *words)
    meta = read_checkpoint(tmp_path / "a.safetensors")["meta"]
    assert meta["classes"] == CLASSES
    assert meta["palette"] == [[1, 2, 3]] * 3
    assert meta["normalize"] == CONVENTIONS["imagenet"].to_dict()


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (["--model", "fcn", "--backbone", "resnet18"], CheckpointError, "fit the network"),
        (["--model", "isanet"], CheckpointError, "no classifier of isanet"),
        (["--model", "fnc"], ConfigError, "unknown model 'fnc'; did you mean fcn"),
        (["--backbone", "resnet18c", "--normalize", "caffe"], ConfigError, "without --model"),
        (["--model", "fcn", "--backbone", "resnet9"], ConfigError, "resnet9"),
        (["--model", "fcn", "--backbone", "resnet18c"], ConfigError, "name its 3 classes"),
    ],
)
def test_mistakes(foreign, tmp_path, monkeypatch, words, error, text):
    with pytest.raises(error, match=text):
        run_main(monkeypatch, foreign, tmp_path / "new.safetensors", *words)
    assert not (tmp_path / "new.safetensors").exists()


def test_classes_that_do_not_fit(foreign, tmp_path, monkeypatch):
    words = ["--model", "fcn", "--backbone", "resnet18c", "--classes", tmp_path / "classes.txt"]
    with pytest.raises(DataError, match=r"classes\.txt"):
        run_main(monkeypatch, foreign, tmp_path / "new.safetensors", *words)
    (tmp_path / "classes.txt").write_text("road\ntree\nroad\n")
    with pytest.raises(DataError, match=r"'road' stands in line 1 and again in line 3"):
        run_main(monkeypatch, foreign, tmp_path / "new.safetensors", *words)
    (tmp_path / "classes.txt").write_text("road\ntree\n")
    with pytest.raises(ConfigError, match="2 names of classes given, 3 expected"):
        run_main(monkeypatch, foreign, tmp_path / "new.safetensors", *words)


def test_a_file_of_another_kind(tmp_path, monkeypatch):
    (tmp_path / "a.pth").write_text("hello")
    with pytest.raises(CheckpointError, match=r"not a file that torch\.save wrote"):
        run_main(monkeypatch, tmp_path / "a.pth", tmp_path / "a.safetensors")
