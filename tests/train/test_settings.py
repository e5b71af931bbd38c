"""Settings: what a recipe file may say, what a field may hold, and that what is written reads back."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.errors import ConfigError
from ossia.train.settings import Settings, flag, groups, spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy(Settings):
    out: Path = flag(help="Folder.", free=True)
    data: tuple[str, ...] = flag(("demo",), help="Sources.", group="Data")
    tokenizer: Path | None = flag(None, help="Vocabulary.", group="Data")
    steps: int = flag(10, help="Steps.", min=1, free=True)
    learning_rate: float = flag(3e-3, help="Rate.", group="Optimiser", above=0)
    share: float = flag(0.5, help="Share.", group="Optimiser", min=0, max=1)
    optimizer: Literal["adamw", "muon"] = flag("adamw", help="Optimiser.", group="Optimiser")
    qat: bool = flag(True, help="Quantise.")

    def check(self) -> None:
        if self.optimizer == "muon" and self.share == 1:
            raise ConfigError("share is 1.0, and muon needs less: lower it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Longer(Toy):
    rank: int = flag(8, help="Rank.", group="Adapter", min=1)


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_win_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path: Path) -> None:
    path = recipe(tmp_path, 'out = "here"\nsteps = 5\nlearning_rate = 1\ndata = ["a.jsonl", "demo*0.5"]\nqat = false\n')
    toy = Toy.load(path, {"steps": 7, "optimizer": None})
    assert toy == Toy(
        out=Path("here"), steps=7, learning_rate=1.0, data=("a.jsonl", "demo*0.5"), qat=False, optimizer="adamw"
    )
    assert type(toy.learning_rate) is float
    assert Toy.load(None, {"out": tmp_path}).share == 0.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('out = "x"\nlerning_rate = 1.0', "recipe.toml: unknown key lerning_rate: did you mean learning_rate?"),
        ('out = "x"\nlearning-rate = 1.0', "recipe.toml: unknown key learning-rate: did you mean learning_rate?"),
        ('out = "x"\nzzz = 1', "recipe.toml: unknown key zzz: give some of out, data, "),
        ('out = "x"\n[steps]\na = 1', "recipe.toml: steps is a table: give a whole number of at least 1"),
        ("steps = 5", "out is missing: give --out, or out = ... in a recipe"),
        ('out = "x"\nsteps = 0', "recipe.toml: steps is 0: give a whole number of at least 1"),
        ('out = "x"\nsteps = 1.5', "recipe.toml: steps is 1.5: give a whole number of at least 1"),
        ('out = "x"\nsteps = true', "recipe.toml: steps is True: give a whole number"),
        ('out = "x"\nsteps = 99999999999999999999', "recipe.toml: steps is beyond 64 bits: give a whole number"),
        ('out = "x"\nlearning_rate = 0', "recipe.toml: learning_rate is 0.0: give a number above 0"),
        ('out = "x"\nlearning_rate = inf', "recipe.toml: learning_rate is inf: give a number above 0"),
        ('out = "x"\nlearning_rate = nan', "recipe.toml: learning_rate is nan: give a number above 0"),
        ('out = "x"\nlearning_rate = "3"', "recipe.toml: learning_rate is '3': give a number above 0"),
        ('out = "x"\nshare = 1.5', "recipe.toml: share is 1.5: give a number of at least 0 and of at most 1"),
        ('out = "x"\noptimizer = "adam"', "recipe.toml: optimizer is 'adam': give adamw or muon"),
        ('out = "x"\nqat = "yes"', "recipe.toml: qat is 'yes': give true or false"),
        ('out = "x"\ndata = "demo"', "recipe.toml: data is 'demo': give a list of texts"),
        ('out = "x"\ndata = [1]', "recipe.toml: data is 1: give a text"),
        ("out = 3", "recipe.toml: out is 3: give a path as text"),
        ('out = ""', "recipe.toml: out is '': give a path as text"),
        ('out = "a\\u0007"', "recipe.toml: out is '"),
        ('out = "x"\noptimizer = "muon"\nshare = 1', "share is 1.0, and muon needs less: lower it"),
        ("out = ", "recipe.toml: not valid TOML ("),
    ],
)
def test_what_a_recipe_may_not_say(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Toy.load(recipe(tmp_path, text))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_recipe_that_is_no_text_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read \(No such file"):
        Toy.load(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml: not valid TOML"):
        Toy.load(tmp_path / "binary.toml")


def test_flags_are_checked_as_a_recipe_is() -> None:
    with pytest.raises(ConfigError, match=r"^unknown key step: did you mean steps\?$"):
        Toy.load(None, {"out": "x", "step": 3})
    with pytest.raises(ConfigError, match=r"^steps is -1: give a whole number of at least 1$"):
        Toy(out=Path("x"), steps=-1)


TEXTS = st.text(min_size=1).filter(str.isprintable)


@given(
    values=st.fixed_dictionaries(
        {
            "out": TEXTS.map(Path),
            "data": st.lists(TEXTS).map(tuple),
            "tokenizer": st.none() | TEXTS.map(Path),
            "steps": st.integers(1, 2**63 - 1),
            "learning_rate": st.floats(0, 1e18, exclude_min=True),
            "share": st.floats(0, 1),
            "qat": st.booleans(),
        }
    )
)
def test_what_is_written_reads_back(values: dict[str, Any]) -> None:
    toy = Toy(**values)
    assert Toy(**tomllib.loads(toy.to_toml())) == toy


def test_the_file_is_a_recipe_a_person_reads(tmp_path: Path) -> None:
    Toy(out=Path("run"), data=("a", 'b"\\')).write(tmp_path / "settings.toml")
    assert Toy.load(tmp_path / "settings.toml").data == ("a", 'b"\\')
    assert (tmp_path / "settings.toml").read_text() == (
        '# Run\nout = "run"\nsteps = 10\nqat = true\n\n'
        '# Data\ndata = ["a", "b\\"\\\\"]\n# tokenizer is not set\n\n'
        '# Optimiser\nlearning_rate = 0.003\nshare = 0.5\noptimizer = "adamw"\n'
    )


def test_what_decides_the_course_leaves_out_the_free() -> None:
    course = Toy(out=Path("x")).course()
    assert set(course) == {each.name for each in spec(Toy)} - {"out", "steps"}
    assert course["data"] == ["demo"]


def test_a_recipe_may_extend_another() -> None:
    longer = Longer(out=Path("x"), rank=4, steps=3)
    assert (longer.rank, longer.steps) == (4, 3)
    assert [heading for heading, _ in groups(Longer)] == ["Run", "Data", "Optimiser", "Adapter"]
    with pytest.raises(ConfigError, match="rank is 0"):
        Longer(out=Path("x"), rank=0)
