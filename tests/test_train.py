# SPDX-License-Identifier: MIT
"""Training from the command line, on tiny drawn scenes: whole runs, resumed runs, and mistakes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from openseg import train as entry_point
from openseg.build import load_predictor
from openseg.engine.checkpoints import read_checkpoint
from openseg.engine.determinism import set_deterministic
from openseg.engine.trainer import Trainer
from openseg.engine.validation import Validation
from openseg.errors import OpensegError
from tests.engine.tiny import assert_equal_states

TINY = (
    *("data.scene_size=[32, 48]", "data.crop_size=[40, 40]", "data.workers=0", "device=cpu"),
    *("data.scene_length=6", "data.scene_val_length=1", "train.batch_size=2"),
    *("train.iterations=4", "val.every=8", "run.log_every=1", "run.samples=0"),
    *("train.lr=0.01", "train.warmup_iterations=0"),
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    set_deterministic(False)
    torch.backends.cudnn.benchmark = False


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Run the entry point in this process, in an empty folder; returns its status."""
    monkeypatch.chdir(tmp_path)

    def call(*overrides, cfg="scenes/ocrnet_r18"):
        words = ["openseg.train", "--cfg", str(cfg), *TINY, *overrides]
        monkeypatch.setattr(sys, "argv", words)
        return entry_point.main()

    return call


def records(run: str | Path) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def test_a_run_from_its_start_to_its_checkpoints(train, capsys):
    words = ("train.ema=0.9", "train.clip_grad_norm=1", "run.keep=1")
    words = (*words, "val.every=2", "run.samples=1")
    assert train("run.folder=runs/one", *words) == 0
    run = Path("runs/one")
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "environment.json", "log.txt", "metrics.jsonl", "curves.png"),
        *("checkpoints", "samples"),
    }
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"last.pt", "best.pt", "iteration_00000004.pt"}
    assert Image.open(run / "samples" / "iteration_00000004.png").size > (192, 32)
    kinds = [(record["kind"], record["iteration"]) for record in records(run)]
    train_kinds = [("train", i) for i in range(1, 5)]
    assert kinds == [*train_kinds[:2], ("validation", 2), *train_kinds[2:], ("validation", 4)]
    assert "best mean IoU" in capsys.readouterr().out

    checkpoint = read_checkpoint(run / "checkpoints" / "last.pt")
    assert checkpoint["meta"]["classes"][0] == "sky"
    assert checkpoint["meta"]["palette"][0] == [147, 197, 253]
    assert checkpoint["config"] == yaml.safe_load((run / "config.yaml").read_text())
    assert checkpoint["metrics"]["mean_iou"] == records(run)[-1]["mean_iou"]
    model, meta = load_predictor(run / "checkpoints" / "last.pt", "cpu")
    assert_equal_states(model.state_dict(), checkpoint["ema"])
    assert not model.training
    assert meta == checkpoint["meta"]

    assert train("run.folder=again/two", cfg=run / "config.yaml") == 0
    again = read_checkpoint("again/two/checkpoints/last.pt")
    assert_equal_states(again["state_dict"], checkpoint["state_dict"])


EXACT = ("train.deterministic=true", "train.ema=0.9")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The last checkpoint and the records of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as context:
        words = ["--cfg", "scenes/ocrnet_r18", *TINY, *EXACT, f"run.folder={folder}"]
        context.setattr(sys, "argv", ["openseg.train", *words])
        torch.set_num_threads(1)
        assert entry_point.main() == 0
    return read_checkpoint(folder / "checkpoints" / "last.pt"), records(folder)


@pytest.mark.parametrize(("workers", "workers_then"), [(0, 2), (2, 0)])
def test_an_interrupted_and_resumed_run_is_bit_equal_to_a_straight_one(
    straight, train, monkeypatch, capsys, workers, workers_then
):
    step = Trainer.step

    def interrupted_step(self, images, labels):
        if self.iteration == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, images, labels)

    with monkeypatch.context() as context:
        context.setattr(Trainer, "step", interrupted_step)
        stopped = train("run.folder=resumed", *EXACT, f"data.workers={workers}")
    assert stopped == 128 + signal.SIGINT
    assert "run.resume=auto" in capsys.readouterr().out
    assert read_checkpoint("resumed/checkpoints/last.pt")["training"]["iteration"] == 2
    words = (*EXACT, "run.resume=auto", f"data.workers={workers_then}")
    assert train("run.folder=resumed", *words) == 0

    one, one_records = straight
    other, other_records = read_checkpoint("resumed/checkpoints/last.pt"), records("resumed")
    assert_equal_states(one["state_dict"], other["state_dict"])
    assert_equal_states(one["ema"], other["ema"])
    assert same(one["training"], other["training"])
    facts = ("kind", "iteration", "loss", "lr", "mean_iou")
    for one_record, other_record in zip(one_records, other_records, strict=True):
        assert {k: one_record.get(k) for k in facts} == {k: other_record.get(k) for k in facts}


@pytest.mark.parametrize("ended_in", [2, 4])
def test_a_run_that_a_validation_ended_resumes_bit_equal_to_a_straight_one(
    train, monkeypatch, ended_in
):
    words = (*EXACT, "val.every=2")
    assert train("run.folder=straight", *words) == 0
    validate = Validation.__call__

    def failing(self, model, iteration):
        if iteration == ended_in:
            raise MemoryError
        return validate(self, model, iteration)

    with monkeypatch.context() as context:
        context.setattr(Validation, "__call__", failing)
        with pytest.raises(MemoryError):
            train("run.folder=resumed", *words)
    assert read_checkpoint("resumed/checkpoints/last.pt")["training"]["iteration"] == ended_in
    assert train("run.folder=resumed", *words, "run.resume=auto") == 0
    for name in ("last.pt", "best.pt"):
        one, other = (read_checkpoint(f"{run}/checkpoints/{name}") for run in RUNS)
        for kept in (one, other):
            del kept["config"]
            if kept["training"] is not None:  # options such as lr are set by the next step
                del kept["training"]["optimizer"]["param_groups"]
        assert same(one, other)
    facts = ("kind", "iteration", "loss", "mean_iou")
    one, other = ([[r.get(k) for k in facts] for r in records(run)] for run in RUNS)
    assert one == other


RUNS = ("straight", "resumed")


def same(one, other) -> bool:
    """Whether two nests of dicts, lists, tensors and plain values are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_resume_says_what_changed_and_starts_where_there_is_nothing(train, capsys):
    words = ("train.iterations=1", "run.resume=auto")
    assert train(*words) == 0
    assert train(*words, "train.iterations=2", "train.lr=0.02") == 0
    printed = capsys.readouterr().out
    assert "resumed at iteration 1" in printed
    assert "changed since: train.lr: 0.02, was 0.01" in printed
    assert records("runs/scenes/ocrnet_r18")[-2]["lr"] == pytest.approx(0.02 * 0.5**0.9)


def test_weights_of_another_run_start_a_new_one(train, capsys):
    words = ("train.iterations=1",)
    assert train(*words, "run.folder=runs/one") == 0
    best = "runs/one/checkpoints/best.pt"
    assert train(*words, "run.folder=runs/two", f"model.weights={best}", "train.lr=1e-12") == 0
    one, two = (read_checkpoint(f"runs/{n}/checkpoints/best.pt") for n in ("one", "two"))
    weights = [name for name in one["state_dict"] if name.endswith("weight")]
    for name in weights:
        torch.testing.assert_close(one["state_dict"][name], two["state_dict"][name])
    assert two["training"] is None
    assert "tensors loaded, names of openseg" in capsys.readouterr().out


def test_a_run_resumed_into_another_folder_has_a_best_of_its_own(train, capsys):
    words = ("val.every=1", "train.freeze_norm=true", "run.folder=one", "run.keep=9")
    assert train(*words, "train.iterations=2") == 0
    words = ("train.lr=1e-12", "val.every=3", "run.resume=one/checkpoints/last.pt")
    capsys.readouterr()
    assert train(*words, "train.iterations=2", "run.folder=nothing_left") == 0
    assert "best.pt was not written" in capsys.readouterr().out
    assert train(*words, "train.iterations=3", "run.folder=two") == 0
    printed = capsys.readouterr().out
    assert "at iteration 3: two/checkpoints/best.pt" in printed
    assert load_predictor("two/checkpoints/best.pt", "cpu")


def test_a_resumed_run_does_not_read_the_weights_that_it_began_with(train):
    words = ("train.iterations=1", "run.folder=runs/two", "model.weights=runs/one.pt")
    assert train("train.iterations=1", "run.folder=runs/one") == 0
    os.rename("runs/one/checkpoints/best.pt", "runs/one.pt")
    assert train(*words) == 0
    os.remove("runs/one.pt")
    assert train(*words, "train.iterations=2", "run.resume=auto") == 0


def test_a_dry_run_measures_and_writes_nothing(train, capsys):
    assert train("dry_run=true") == 0
    printed = capsys.readouterr().out
    for fact in ("ocrnet, resnet18c: 16", "10 classes", "memory at its peak", "expected time"):
        assert fact in printed
    assert os.listdir() == []


DIVERGING = ("train.optimizer=sgd", "train.lr=1e38")


def test_weights_that_are_not_finite_are_not_saved(train):
    with pytest.raises(OpensegError, match="not finite after iteration 1"):
        train("run.folder=broken", *DIVERGING, "val.every=1")
    assert os.listdir("broken/checkpoints") == []


def test_a_dry_run_refuses_what_training_would(train, capsys):
    with pytest.raises(OpensegError, match="not finite after iteration 1"):
        train("dry_run=true", *DIVERGING)
    assert "nothing was written" not in capsys.readouterr().out


MISTAKES = {
    "data.train_split=training": "training",
    "model.name=ocr_net": "did you mean ocrnet",
    "model.backbone=resnet18x": "resnet18",
    "model.weights=nowhere.pt": "nowhere.pt",
    "model.in_channels=4": "data.mean",
    "loss.class_weights=[1, 2]": "loss.class_weights: 2 numbers given, 10 expected",
    "loss.aux_weights={dsn: 1}": "loss.aux_weights",
    "train.micro_batch_size=3": "a divisor of 2 expected",
    "train.amp=fp16": "without a CUDA device",
    "run.resume=nowhere.pt": "no such checkpoint",
    "run.folder=file/run": "file is in the way",
    "data.name=camvid": "data.root",
    "device=cuda:7": "GPU 7",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_mistakes_are_found_before_the_first_iteration(train, monkeypatch, word):
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("an iteration was run"))
    Path("file").write_text("")
    with pytest.raises(OpensegError) as caught:
        train(word)
    assert MISTAKES[word] in str(caught.value)
    assert os.listdir() == ["file"]


def test_a_used_folder_is_left_alone_unless_told(train):
    words = ("train.iterations=1",)
    assert train(*words) == 0
    before = Path("runs/scenes/ocrnet_r18/log.txt").read_text()
    with pytest.raises(OpensegError, match=r"run\.resume=auto"):
        train(*words)
    assert Path("runs/scenes/ocrnet_r18/log.txt").read_text() == before
    assert train(*words, "run.overwrite=true") == 0
    assert len(records("runs/scenes/ocrnet_r18")) == 2


def call(*words: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """The entry point in a process of its own; the working folder is the repository's."""
    return subprocess.run(
        [sys.executable, *launcher, "-m", "openseg.train", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_mistake_prints_one_line_and_no_traceback():
    done = call("--cfg", "scenes/ocrnet_r18", "train.lrr=3")
    assert done.returncode == 2
    assert done.stderr == (
        "error: override: there is no option 'train.lrr'; did you mean train.lr?\n"
    )


def test_overrides_stand_before_and_behind_options(monkeypatch, capsys):
    words = ("train.seed=1", "--cfg", "scenes/demo", "train.lr=0.5", "--print-config", "run.keep=7")
    monkeypatch.setattr(sys, "argv", ["openseg.train", *words])
    assert entry_point.main() == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("seed: 1\n", "lr: 0.5\n", "keep: 7\n"))


def test_help_lists_configurations_and_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["openseg.train", "--help"])
    with pytest.raises(SystemExit) as caught:
        entry_point.main()
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for text in ("scenes/ocrnet_r18", "train.batch_size=8", "over all processes", "key=value"):
        assert text in printed


def test_two_processes_train_one_network(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    words = (
        "--cfg",
        "scenes/ocrnet_r18",
        *TINY,
        f"run.folder={tmp_path}/run",
        "train.iterations=2",
    )
    done = call(*words, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best mean IoU") == 1
    assert "2 × cpu" in done.stdout
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert checkpoint["training"]["samples"] == 4
    assert len(checkpoint["training"]["random"]) == 2
    pixels = sum(c["pixels"] for c in checkpoint["metrics"]["classes"].values())
    assert pixels == 32 * 48
