"""A name means the bundled model, a folder, or a download; anything else is told what to do."""

from pathlib import Path

import pytest

from ossia.errors import CheckpointError
from ossia.model import locate
from ossia.model.locate import demo_folder, resolve_model, tokenizer_file


def test_a_folder_means_itself(tmp_path: Path) -> None:
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path


def test_demo_means_the_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "demo_folder", lambda: tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model("demo") == tmp_path


def test_a_missing_bundled_model_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "demo_folder", lambda: tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"the bundled model is not in {tmp_path}: install ossia with its weights"
    ):
        resolve_model("demo")


def test_the_bundled_model_lies_in_the_package() -> None:
    import ossia

    assert demo_folder() == Path(str(ossia.__file__)).parent / "demo"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "nowhere is no folder: give 'demo', a model folder, or a hub id"),
        ("foo--bar/baz", r"foo--bar/baz is no folder: give 'demo'"),
        ("a" * 300, "aaa is no folder: give 'demo'"),
        ("a" * 300 + "/b", "aaa/b is no folder: give 'demo'"),
        ("a\0b", "a\0b is no folder: give 'demo'"),
        ("a/b/c", "a/b/c is no folder: give 'demo'"),
        ("../up", r"\.\./up is no folder: give 'demo'"),
        ("owner/absent", "owner/absent is no folder, and not downloaded or not wholly: run `ossia pull owner/absent`"),
    ],
)
def test_other_names_are_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=says):
        resolve_model(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file: name the folder"):
        resolve_model(tmp_path / "model.safetensors")


def test_the_tokenizer_lies_in_the_folder_or_above_original(tmp_path: Path) -> None:
    original = tmp_path / "m" / "original"
    original.mkdir(parents=True)
    assert tokenizer_file(original) is None
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    assert tokenizer_file(original) == tmp_path / "m" / "tokenizer.json"
    assert tokenizer_file(tmp_path / "m") == tmp_path / "m" / "tokenizer.json"
    (original / "o200k_base.tiktoken").write_text("")
    assert tokenizer_file(original) == original / "o200k_base.tiktoken"
    (tmp_path / "m" / "other").mkdir()
    assert tokenizer_file(tmp_path / "m" / "other") is None
