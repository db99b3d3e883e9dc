# SPDX-License-Identifier: MIT
"""Configurations: what is read, in which order, and what is said about mistakes."""

from pathlib import Path

import pytest
import yaml

from openseg.config import Config, describe, load_config, to_yaml
from openseg.config.loading import _PATHS, differences, to_plain
from openseg.config.schema import fields_of
from openseg.errors import ConfigError

SCENES = "scenes/ocrnet_r18"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_overrides_come_after_the_file_and_the_file_after_its_bases(tmp_path):
    write(tmp_path, "far.yaml", "train: {lr: 0.1, power: 0.5, iterations: 7}")
    write(tmp_path, "sub/near.yaml", "base: ../far.yaml\ntrain: {power: 0.6, iterations: 8}")
    path = write(tmp_path, "run.yaml", "base: sub/near\ntrain: {iterations: 9}")
    config = load_config(path, ["train.batch_size=3", "data.crop_size=[32, 48]"])
    train = config.train
    assert (train.lr, train.power, train.iterations, train.batch_size) == (0.1, 0.6, 9, 3)
    assert config.data.crop_size == (32, 48)
    assert config.run.folder == "runs/run"


def test_a_base_may_be_a_shipped_name(tmp_path):
    path = write(tmp_path, "mine.yaml", "base: scenes/ocrnet_r18\ntrain: {lr: 0.5}")
    config = load_config(path)
    assert config.train.lr == 0.5
    assert config.train.iterations == load_config(SCENES).train.iterations


def test_a_chain_that_bites_its_tail_is_refused(tmp_path):
    write(tmp_path, "a.yaml", "base: b.yaml")
    path = write(tmp_path, "b.yaml", "base: a.yaml")
    with pytest.raises(ConfigError, match="its own base"):
        load_config(path)


def test_the_written_config_reads_back_equal(tmp_path):
    config = load_config(SCENES, ["train.ema=0.99", "run.folder=007", "val.scales=[0.5, 1]"])
    path = write(tmp_path, "config.yaml", to_yaml(config))
    assert load_config(path) == config
    assert yaml.safe_load(to_yaml(config)) == to_plain(config)


@pytest.mark.parametrize("key", _PATHS)
def test_a_path_may_begin_at_the_home(tmp_path, monkeypatch, key):
    monkeypatch.setenv("HOME", "/home/me")
    section, _, name = key.partition(".")
    config = load_config("camvid/ocrnet_r18", ["data.root=there", f"{key}=~/a b"])
    assert getattr(getattr(config, section), name) == "/home/me/a b"
    path = write(tmp_path, "run.yaml", f"base: {SCENES}\nrun: {{folder: ~/c}}")
    config = load_config(path, ["run.resume=auto"])
    assert (config.run.folder, config.run.resume) == ("/home/me/c", "auto")


def test_options_of_paths_are_known_as_such():
    texts = {key for key, kind in fields_of().items() if kind == str | None}
    assert texts - {"loss.class_weights_of"} == set(_PATHS)


def test_the_written_config_forgets_what_asks_for_one_start_only():
    written = to_plain(load_config(SCENES, ["run.overwrite=true", "dry_run=true"]))
    assert written["run"]["overwrite"] is False
    assert written["dry_run"] is False


def test_text_options_take_the_word_as_written():
    config = load_config(SCENES, ["run.folder=1e-3", "run.resume=null", "model.weights=on"])
    assert (config.run.folder, config.run.resume, config.model.weights) == ("1e-3", None, "on")


def test_a_mapping_is_replaced_whole_and_one_entry_of_it_alone():
    whole = load_config(SCENES, ["loss.aux_weights={dsn: 0.3}"]).loss.aux_weights
    entry = load_config(SCENES, ["loss.aux_weights.dsn=0.3"]).loss.aux_weights
    assert whole == {"dsn": 0.3}
    assert entry == {"aux": 0.4, "dsn": 0.3}


MISTAKES = {
    "resume=auto": "no option 'resume'; did you mean run.resume?",
    "train.lrr=1": "no option 'train.lrr'; did you mean train.lr?",
    "crop_size=[1,1]": "did you mean data.crop_size or val.crop_size?",
    "something.else=1": "--help lists all",
    "train=3": "train is a section",
    "x": "expected an override such as",
    "train.lr=abc": "train.lr: 'abc' given, a number expected",
    "train.iterations=1.5": "train.iterations: 1.5 given, a whole number expected",
    "train.iterations=null": "train.iterations: None given, a whole number expected",
    "train.amp=half": "train.amp: 'half' given, none or bf16 or fp16 expected",
    "data.crop_size=64": "data.crop_size: 64 given, a list of 2",
    "data.crop_size=[64]": "data.crop_size: [64] given, a list of 2",
    "loss.class_weights=[1, a]": "a list (a number each) or null expected",
    "loss.main={}": "a loss and its weight, or several expected",
    "loss.main.dice=-1": "loss.main.dice: -1.0 given, at least 0 expected",
    "loss.rmi_weight=2": "0 to 1 expected",
    "loss.class_weights=[0, 0]": "loss.class_weights: [0.0, 0.0] given, numbers of at least 0",
    "loss.class_weights=[-1, 2]": "loss.class_weights: [-1.0, 2.0] given, numbers of at least 0",
    "loss.rmi_radius=5": "loss.rmi_radius: 5 given, 3 unless loss.main has rmi expected",
    "loss.focal_gamma=1": "loss.focal_gamma: 1.0 given, 2.0 unless loss.main has focal expected",
    "loss.ohem_thresh=2": "loss.ohem_thresh: 2.0 given, null, or 0 to 1 expected",
    "loss.aux_weights.x=abc": "loss.aux_weights.x: 'abc' given, a number",
    "train.lr=[1": "is no valid YAML",
    "train.iterations=${nothing}": "nothing",
    "train.lr=0": "train.lr: 0.0 given, more than 0 expected",
    "train.lr=nan": "train.lr: nan given, more than 0 expected",
    "train.lr=.inf": "train.lr: inf given, a finite number expected",
    "train.weight_decay=.inf": "train.weight_decay: inf given, a finite number expected",
    "train.seed=9223372036854775808": "given, at least 0 and below 2 ** 63 expected",
    "val.scales=[.inf]": "val.scales: [inf] given, numbers above 0 expected",
    "train.micro_batch_size=0": "at least 1 expected",
    "train.ema=1": "between 0 and 1",
    "model.output_stride=4": "8 or 16 expected",
    "data.mean=[1, 2]": "3 numbers, one a channel expected",
    "data.scale_range=[2, 1]": "0 < lowest ≤ highest expected",
    "data.id_map={0: 1}": "data.id_map: {0: 1} given, null unless data.name=folder expected",
    "data.classes=[a]": "data.classes: ['a'] given, null unless data.name=folder expected",
    "data.val_list=x": "data.val_list: 'x' given, null, since scenes are drawn, expected",
    "data.instances=true": "false unless data.name=cityscapes",
    "data.background=true": "false unless data.name=pascal_context expected",
    "data.name=camvid": "data.root: None given, the folder of camvid expected",
    "val.crop_size=[8, 8]": "null unless val.mode=slide expected",
    "val.min_side=0": "val.min_side: 0 given, at least 1 expected",
    "val.fixed_size=[0, 9]": "val.fixed_size: 0 given, at least 1 expected",
    "val.multiple=0": "val.multiple: 0 given, at least 1 expected",
    "val.combine=sum": "val.combine: 'sum' given, logits or exp expected",
    "val.scales=[]": "val.scales: [] given",
    "device=gpu": "auto, cpu, cuda or cuda:N expected",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_named_with_what_was_expected(word):
    with pytest.raises(ConfigError) as caught:
        load_config(SCENES, [word])
    assert MISTAKES[word] in str(caught.value)


def test_differences_from_what_an_earlier_version_saved():
    config = load_config(SCENES, ["train.lr=0.5", "data.brightness=3"])
    saved = to_plain(load_config(SCENES, ["run.keep=9"]))
    del saved["data"]["divisor"], saved["data"]["brightness"]
    told = ["data.brightness: 3, was 10", f"train.lr: 0.5, was {saved['train']['lr']}"]
    assert differences(config, saved) == told


def test_rules_between_two_options():
    with pytest.raises(ConfigError, match=r"false unless data\.name=cityscapes and loss\.main="):
        load_config("cityscapes/ocrnet_r101", ["data.root=.", "data.instances=true"])
    with pytest.raises(ConfigError, match="deletes the earlier run"):
        load_config(SCENES, ["run.resume=auto", "run.overwrite=true"])
    with pytest.raises(ConfigError, match=r"null beside loss\.class_weights"):
        load_config(SCENES, ["loss.class_weights=[1]", "loss.class_weights_of=cityscapes"])
    with pytest.raises(ConfigError, match=r"val\.min_side: 520 given, null beside val\.fixed_size"):
        load_config(SCENES, ["val.min_side=520", "val.fixed_size=[473, 473]"])
    slide = ["val.mode=slide", "val.crop_size=[64, 64]"]
    assert load_config(SCENES, [*slide, "val.stride=[32, 64]"]).val.stride == (32, 64)
    with pytest.raises(ConfigError, match="at most the window"):
        load_config(SCENES, [*slide, "val.stride=[65, 64]"])


LOSSES = [
    ("{dice: 1}", "loss.ohem_thresh=0.7", r"loss\.ohem_thresh: 0\.7 given, null unless loss\.main"),
    ("{segfix: 1}", "loss.label_smoothing=0.1", r"loss\.label_smoothing: 0\.1 given, 0\.0 beside"),
    ("{segfix: 1}", "loss.class_weights=[1]", r"loss\.class_weights: \[1\.0\] given, None beside"),
    ("{rmi: 1}", "loss.rmi_radius=99", r"data\.crop_size: .* given, at least 295 a side"),
]


@pytest.mark.parametrize(("main", "option", "message"), LOSSES)
def test_options_that_no_loss_reads_are_refused(main, option, message):
    with pytest.raises(ConfigError, match=message):
        load_config(SCENES, [f"loss.main={main}", option])


def test_options_of_losses_that_are_there_are_taken():
    load_config(SCENES, ["loss.main={dice: 1}", "loss.ohem_thresh=0.7", "loss.ohem_aux=true"])
    load_config(SCENES, ["loss.main={rmi: 1, focal: 1}", "loss.rmi_radius=5", "loss.focal_gamma=1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  lrr: 3", r"bad\.yaml: there is no option 'train\.lrr'; did you mean train\.lr"),
        ("train:\n  lr: fast", r"bad\.yaml: train\.lr: 'fast' given, a number expected"),
        ("train: 3", "train is a section"),
        ("- 1\n- 2", "expected sections"),
        ("train: {lr: [1", "is no valid YAML"),
        ("base: nowhere", r"bad\.yaml: base: there is no configuration 'nowhere'"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, "bad.yaml", text))


def test_a_missing_config_lists_the_nearest_names():
    with pytest.raises(ConfigError, match="did you mean scenes/ocrnet_r18"):
        load_config("scenes/ocrnet_r81")
    with pytest.raises(ConfigError, match=r"shipped are .*scenes/ocrnet_r18"):
        load_config("zzz")


def test_every_option_has_a_comment_and_describe_shows_the_defaults():
    rows = {key: (default, comment) for key, default, comment in describe()}
    assert list(rows) == list(fields_of())
    assert rows["train.lr"][0] == Config().train.lr
    assert all(len(comment) > 5 for _, comment in rows.values())
