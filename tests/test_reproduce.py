# SPDX-License-Identifier: MIT
"""The published tables as data, and a row that is trained, evaluated, recorded and printed."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from openseg import reproduce
from openseg.build.tables import find_row, table_text
from openseg.config import load_config, shipped_configs
from openseg.errors import ConfigError, DataError, OutputError, TrainingError

SPEC = Path(__file__).resolve().parents[2] / "shared" / "spec" / "tables.md"
TABLES = reproduce.read_tables()
TINY = {
    "title": "Scenes",
    "overrides": ["train.iterations=1"],
    "evaluate": {"mirrored": ["val.flip=true"]},
    "columns": ["mirrored mIoU", "mirrored accuracy"],
    "rows": [
        {"config": "scenes/fcn_r18", "method": "FCN", "backbone": "18"},
        {
            "config": "scenes/demo",
            "trained": "scenes/fcn_r18",
            "method": "FCN, as the demo",
            "backbone": "18",
            "published": {"mirrored mIoU": "12.3, 45.6"},
        },
    ],
}
SMALL = (
    *("train.batch_size=2", "train.seed=0", "data.scene_size=[32,32]"),
    *("data.scene_length=4", "data.scene_val_length=2", "data.crop_size=[32,32]"),
    *("data.workers=0", "device=cpu", "run.samples=0", "val.scales=[0.5]"),
)


def run_main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, words)])
    reproduce.main()


def test_every_row_has_a_configuration_and_every_figure_a_column():
    rows = [(table, row) for table in TABLES.values() for row in table["rows"]]
    assert {row["config"] for _, row in rows} <= set(shipped_configs())
    assert len({row["config"] for _, row in rows}) > 50
    for table, row in rows:
        assert row.get("published", {}).keys() <= set(table["columns"])
        if "trained" in row:
            assert row["trained"] in {other["config"] for _, other in rows} | set(shipped_configs())


@pytest.mark.parametrize(
    ("table", "rows"), [("cityscapes", 12), ("ade20k", 9), ("lip", 4), ("camvid", 13)]
)
def test_tables_have_all_their_rows(table, rows):
    assert len(TABLES[table]["rows"]) == rows


def figures(text):
    """The numbers with two decimals, of which one has a comma for a point."""
    return [number.replace(",", ".") for number in re.findall(r"\d\d[.,]\d\d", text)]


@pytest.mark.skipif(not SPEC.exists(), reason="the published tables are not beside this checkout")
def test_figures_batches_and_iterations_are_those_of_the_published_tables():
    lines = [line for line in SPEC.read_text().splitlines() if "3x3-Res" in line and "|" in line]
    rows = [row for name in ("cityscapes", "ade20k", "lip") for row in TABLES[name]["rows"]]
    for line, row in zip(lines, rows, strict=True):
        cells = [cell.strip() for cell in line.replace("*", "").split("|")]
        cells = [cell for cell in cells if cell not in ("", "-")]
        batch, iterations = cells[-2], cells[-1]
        train = load_config(row["config"], ["data.root=."]).train
        assert row["method"].removesuffix(", ms+flip") == cells[0]
        assert row["backbone"] == cells[1]
        assert figures(" ".join(row.get("published", {}).values())) == figures(line), line
        assert (train.batch_size, f"{train.iterations // 10_000}W") == (int(batch), iterations)


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ("cityscapes/fcn_r101", ("fcn", "resnet101c", 40_000, 8, None)),
        (
            "cityscapes/asp_ocnet_r101_ohem_trainval_80k",
            ("asp_ocnet", "resnet101c", 80_000, 8, 0.7),
        ),
        ("cityscapes/ocrnet_r101_ohem_trainval_200k", ("ocrnet", "resnet101c", 200_000, 8, 0.7)),
        ("ade20k/asp_ocrnet_r50", ("asp_ocrnet", "resnet50c", 150_000, 16, None)),
        ("ade20k/ocrnet_r101", ("ocrnet", "resnet101c", 150_000, 16, None)),
        ("lip/ce2p_ocrnet_r101", ("ce2p_ocrnet", "resnet101c", 110_000, 40, None)),
    ],
)
def test_rows_train_as_published(row, facts):
    config = load_config(row, ["data.root=."])
    model, train = config.model, config.train
    ohem = config.loss.ohem_thresh
    assert (model.name, model.backbone, train.iterations, train.batch_size, ohem) == facts


def test_the_list_and_a_table_without_records(monkeypatch, capsys, tmp_path):
    run_main(monkeypatch)
    assert "cityscapes/asp_ocrnet_r101_ohem_trainval_200k" in capsys.readouterr().out
    run_main(monkeypatch, "--table", "lip", "--records", tmp_path / "none.jsonl")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "| CE2P+FastAspOC | 3x3-Res101 | 55.29 |  | 87.82 |  | 40 | 110000 |"


def test_a_row_is_trained_evaluated_recorded_and_printed(monkeypatch, capsys, tmp_path):
    def here(command):
        """The command without a process of its own, which would import torch again."""
        assert command[:2] == [sys.executable, "-m"]
        monkeypatch.setattr(sys, "argv", command[2:])
        status = importlib.import_module(command[2]).main()
        return SimpleNamespace(returncode=status or 0)

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=here))
    monkeypatch.setattr(reproduce, "read_tables", lambda: {"tiny": TINY})
    records, folder = tmp_path / "new" / "records.jsonl", f"run.folder={tmp_path / 'run'}"
    row = ("--row", "scenes/fcn_r18", "--records", records, folder, *SMALL)
    run_main(monkeypatch, *row)
    record = json.loads(records.read_text())
    assert (record["row"], record["evaluation"]) == ("scenes/fcn_r18", "mirrored")
    assert (record["iterations"], record["batch_size"], record["images"]) == (1, 2, 2)
    assert record["hours"] is not None
    assert record["processor_hours"] is not None
    assert set(SMALL) - set(record["overrides"]) == {
        "train.seed=0", "data.workers=0", "device=cpu", "run.samples=0",
    }  # fmt: skip
    output = tmp_path / "run" / "evaluation" / "scenes_fcn_r18_mirrored"
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["flip"]
    assert metrics["scales"] == [0.5]
    assert record["pixel_accuracy"] == metrics["pixel_accuracy"]
    capsys.readouterr()
    run_main(monkeypatch, "--table", "tiny", "--records", records)
    *_, line, unmeasured = capsys.readouterr().out.splitlines()
    assert f"|  | {100 * record['mean_iou']:.2f} (train.batch_size=2, " in line
    assert line.endswith(" | 8 | 1 |")
    assert unmeasured.startswith("| FCN, as the demo | 18 | 12.3, 45.6 |  |  | ")
    with pytest.raises(ConfigError, match=r"with other options \(train.seed: 1, was 0\): .*folder"):
        run_main(monkeypatch, *row, "train.seed=1")


def record_of(value, **changes):
    facts = {"row": "scenes/fcn_r18", "evaluation": "mirrored", "seed": 0, "iterations": 1}
    metrics = {"mean_iou": value, "pixel_accuracy": 1.0, "batch_size": 8, "overrides": []}
    return {**facts, **metrics, **changes}


@pytest.mark.parametrize(
    ("records", "cell"),
    [
        ([record_of(0.125)], "12.50"),
        ([record_of(0.5), record_of(0.125)], "12.50"),
        ([record_of(0.5, seed=3), record_of(0.25)], "37.50 (50.00, 25.00)"),
        ([record_of(0.5, seed=3), record_of(0.25, iterations=9)], "25.00"),
        ([record_of(0.5), record_of(0.25, overrides=["train.lr=1"])], "25.00 (train.lr=1)"),
    ],
)
def test_a_cell_is_the_mean_of_seeds_that_were_trained_alike(records, cell):
    assert f"|  | {cell} | 100.00" in table_text(TINY, records)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"row": "scenes/fc', "line 2: is no record of a row: .*column 9.*; mend or remove it"),
        ("{}", "line 2: .*it lacks batch_size, evaluation,"),
        ("7", "line 2: .*it lacks batch_size"),
        ("\udcff", "is no text"),
    ],
)
def test_a_broken_record_is_named(monkeypatch, tmp_path, line, complaint):
    path = tmp_path / "records.jsonl"
    text = f"{json.dumps(record_of(0.5))}\n{line}\n"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=rf"records\.jsonl.*{complaint}"):
        run_main(monkeypatch, "--table", "camvid", "--records", path)
    with pytest.raises(DataError, match="cannot be read"):
        run_main(monkeypatch, "--table", "camvid", "--records", tmp_path)


def test_a_row_of_two_tables_is_evaluated_for_both(monkeypatch, tmp_path):
    """The model zoo has rows of the first table, and asks for less."""
    evaluated = []

    def note(command):
        if command[2] == "openseg.evaluate":
            output = Path(command[command.index("--output") + 1])
            output.mkdir(parents=True)
            facts = {"mean_iou": 0.5, "pixel_accuracy": 0.5, "images": 1}
            (output / "metrics.json").write_text(json.dumps(facts))
            evaluated.append("data.val_split=train" in command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=note))
    words = (f"data.root={tmp_path}", f"run.folder={tmp_path / 'run'}")
    records = tmp_path / "records.jsonl"
    run_main(monkeypatch, "--row", "cityscapes/ocrnet_r101", "--records", records, *words)
    assert evaluated == [True, False]
    splits = [json.loads(line)["evaluation"] for line in records.read_text().splitlines()]
    assert splits == ["train", "val"]


def test_rows_of_several_scales_are_evaluated_so_too():
    name = "pascal_context/ocrnet_hrnet_w48_ssld"
    table, row = find_row(TABLES, name)
    assert row["published"] == {"val mIoU": "57.82", "ms+flip mIoU": "59.13"}
    assert list(table["evaluate"]) == ["val", "ms+flip"]
    val = load_config(name, ["data.root=.", *table["evaluate"]["ms+flip"]]).val
    assert (val.scales, val.flip, val.min_side) == ([0.5, 0.75, 1, 1.25, 1.5, 1.75, 2], True, 520)
    assert "ms+flip" not in find_row(TABLES, "cityscapes/ocrnet_r101")[0]["evaluate"]
    assert sum("ms+flip mIoU" in row.get("published", {}) for row in TABLES["zoo"]["rows"]) == 7


def test_what_is_not_there_is_named(monkeypatch):
    with pytest.raises(ConfigError, match=r"row 'cityscapes/fcn_r11'; did you mean .*fcn_r101"):
        run_main(monkeypatch, "--row", "cityscapes/fcn_r11")
    with pytest.raises(ConfigError, match="table 'ade'; did you mean ade20k"):
        run_main(monkeypatch, "--table", "ade")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--table", "lip", "train.lr=1"), "train.lr=1: belongs to --row NAME"),
        (("--row", "camvid/fcn_r18", "--processes", "0"), "'0': expected a whole number of 1"),
    ],
)
def test_words_that_mean_nothing_are_refused(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, *words)
    assert message in capsys.readouterr().err


def test_a_training_that_fails_ends_the_row(monkeypatch, tmp_path):
    commands = []

    def fail(command):
        commands.append(command)
        return SimpleNamespace(returncode=2)

    monkeypatch.setattr(reproduce, "collect", None)
    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=fail))
    root, row = f"data.root={tmp_path}", ("--row", "ade20k/asp_ocrnet_r101_ms")
    words = *row, root, "--processes", 4, "data.workers=0"  # overrides may stand anywhere
    with pytest.raises(TrainingError, match=r"openseg\.train ended with status 2$"):
        run_main(monkeypatch, *words)
    (command,) = commands
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "-m")
    assert command[1:7] == list(launcher)
    trained = ["--cfg", "ade20k/asp_ocrnet_r101", "run.resume=auto", root, "data.workers=0"]
    assert command[7:] == ["openseg.train", *trained]


def test_what_cannot_be_evaluated_or_recorded_is_not_trained(monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, "subprocess", None)
    words = ("--row", "camvid/fcn_r18", f"data.root={tmp_path}", "--records")
    with pytest.raises(OutputError, match=f"{tmp_path}: cannot be written: Is a directory"):
        run_main(monkeypatch, *words, tmp_path)
    row, root = "pascal_context/hr_ocrnet_hrnet_w48_ms", f"data.root={tmp_path}"
    with pytest.raises(ConfigError, match=r"val\.stride: \(346, 346\) given, at most the window"):
        run_main(monkeypatch, "--row", row, root, "data.crop_size=[48,48]")


@pytest.mark.parametrize("failing", ["openseg.train", "openseg.evaluate"])
def test_a_row_that_had_begun_can_go_on(monkeypatch, tmp_path, failing):
    checkpoint = tmp_path / "run" / "checkpoints" / "last.pt"

    def save(command):
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.touch()
        return SimpleNamespace(returncode=130 if command[2] == failing else 0)

    monkeypatch.setattr(reproduce, "collect", dict)
    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=save))
    words = "--row", "camvid/fcn_r18", f"data.root={tmp_path}", f"run.folder={tmp_path / 'run'}"
    message = f"{failing} ended with status 130; the row can go on from {checkpoint}"
    with pytest.raises(TrainingError, match=f"^{re.escape(message)}$"):
        run_main(monkeypatch, *words)
