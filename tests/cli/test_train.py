"""`ossia train` around a recipe: its help and flags, what a run leaves and says, how it is stopped and gone on with."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner, Result

from ossia.cli import cli, recipe
from ossia.cli import train as group
from ossia.errors import TrainingError
from ossia.train.events import Events
from ossia.train.settings import Settings, flag

pytest.importorskip("tensorboardX")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToySettings(Settings):
    out: Path = flag(help="Folder.")
    steps: int = flag(6, help="Steps.", min=1, free=True)
    resume: bool = flag(False, help="Go on.", free=True)
    data: tuple[str, ...] = flag(("demo", "b*0.5"), help="Sources.", group="Data")
    learning_rate: float = flag(0.5, help="Rate.", group="Optimiser", above=0)
    optimizer: Literal["adamw", "muon"] = flag("adamw", help="Which.", group="Optimiser")
    qat: bool | None = flag(None, help="Quantise.", group="Optimiser")


def toy(settings: ToySettings, report: Callable[[dict[str, Any]], None]) -> Path:
    """Logs a line every second step; stops where the learning rate says so."""
    run = settings.out / "run"
    run.mkdir(parents=True, exist_ok=True)
    settings.write(run / "settings.toml")
    log = run / "log.jsonl"
    step = json.loads(log.read_text().splitlines()[-1])["step"] if settings.resume else 0
    while step < settings.steps:
        step += 2
        metrics = {"step": step, "loss": 1 / step, "load/0": [0.5, 1.5]}
        with log.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        report(metrics)
        if settings.learning_rate == 7 and step == 4:
            raise KeyboardInterrupt
        if settings.learning_rate == 9:
            raise TrainingError("the loss is nan at step 3: --resume from the last state")
    (settings.out / "config.json").write_text("{}")
    return settings.out


@pytest.fixture(autouse=True)
def toy_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ossia.train.toy", SimpleNamespace(ToySettings=ToySettings, train=toy))
    monkeypatch.setitem(group.RECIPES, "toy", ("toy", "ToySettings", "Learn nothing."))


def train(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["train", *map(str, arguments)])


def test_the_help_shows_each_flag_under_its_heading() -> None:
    text = train("toy", "--help").stdout
    assert "Learn nothing." in text
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith((" ", "Usage"))]
    assert headings == ["Run:", "Data:", "Optimiser:", "Output:"]
    words = " ".join(text.split())
    for expected in (
        "--out PATH Folder. [required]",
        "--steps INTEGER Steps. [default: 6]",
        "--[no-]resume Go on.",
        "--data TEXT Sources. [may be given again; default: demo b*0.5]",
        "--optimizer [adamw|muon] Which. [default: adamw]",
        "--[no-]qat Quantise.",
        "--json Print one JSON object at the end.",
    ):
        assert expected in words


def test_the_list_of_recipes_loads_none_of_them() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from ossia.cli import cli; "
        "out = CliRunner().invoke(cli, ['train', '--help']).stdout; "
        "print('pretrain' in out and 'report' in out, [m for m in sys.modules if m.split('.')[0] == 'torch'])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "True []\n"


def test_everything_in_the_lists_is_there() -> None:
    context = click.Context(group.train)
    commands = [group.train.get_command(context, name) for name in group.train.list_commands(context)]
    assert all(isinstance(command, click.Command) for command in commands)
    assert group.train.get_command(context, "nothing") is None


def test_a_run_leaves_its_report_and_its_events_and_says_where(tmp_path: Path) -> None:
    result = train("toy", "--out", tmp_path / "a")
    assert result.exit_code == 0
    run = tmp_path / "a" / "run"
    assert result.stdout.splitlines() == [
        f"checkpoint: {tmp_path / 'a'}",
        f"report: {run / 'report.html'}",
        f"Talk to it: ossia chat --model {tmp_path / 'a'}",
    ]
    assert result.stderr.splitlines() == [
        "step 2  loss 0.5000",
        "step 4  loss 0.2500",
        "step 6  loss 0.1667",
    ]
    assert (run / "report.html").is_file()
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert ToySettings.load(run / "settings.toml") == ToySettings(out=tmp_path / "a")


def test_of_an_adapter_it_says_how_to_talk_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class AdapterSettings(ToySettings):
        model: str = flag("demo", help="Base.")

    def adapter(settings: ToySettings, report: Callable[[dict[str, Any]], None]) -> Path:
        toy(settings, report)
        (settings.out / "config.json").rename(settings.out / "adapter_config.json")
        return settings.out

    monkeypatch.setitem(sys.modules, "ossia.train.toy", SimpleNamespace(ToySettings=AdapterSettings, train=adapter))
    said = train("toy", "--out", tmp_path, "--model", "a b").stdout.splitlines()
    assert said[0] == f"adapter: {tmp_path}"
    assert said[-1] == f"Talk to it: ossia chat --model 'a b' --adapter {tmp_path}"


def test_one_object_of_json_at_the_end(tmp_path: Path) -> None:
    result = train("toy", "--out", tmp_path, "--json")
    said = json.loads(result.stdout)
    assert said == {
        "checkpoint": str(tmp_path),
        "report": str(tmp_path / "run" / "report.html"),
        "step": 6,
        "loss": pytest.approx(1 / 6),
    }


def test_flags_win_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('steps = 2\nlearning_rate = 0.25\ndata = ["x"]\nqat = true\nout = "nowhere"\n')
    assert train("toy", file, "--out", tmp_path / "a", "--data", "y", "--data", "z", "--no-qat").exit_code == 0
    made = ToySettings.load(tmp_path / "a" / "run" / "settings.toml")
    assert made == ToySettings(out=tmp_path / "a", steps=2, learning_rate=0.25, data=("y", "z"), qat=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "ossia: out is missing: give --out, or out = ... in a recipe"),
        (("--out", "x", "--learning-rate", "0"), "ossia: learning_rate is 0.0: give a number above 0"),
        (("--out", "x", "--learning-rate", "nan"), "ossia: learning_rate is nan: give a number above 0"),
        (("--out", ""), "ossia: out is '': give a path as text"),
        (("--out", "x", "--optimizer", "sgd"), "ossia: Invalid value for '--optimizer': 'sgd' is not one of"),
        (("--out", "x", "--step", "3"), "ossia: No such option '--step'."),
        (("nowhere.toml",), "ossia: nowhere.toml: cannot be read (No such file or directory)"),
        (
            ("--out", "{tmp}/x", "--learning-rate", "9"),
            "ossia: the loss is nan at step 3: --resume from the last state",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    result = train("toy", *(each.format(tmp=tmp_path) for each in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith(says)


def test_a_run_that_is_stopped_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    class Told(Events):
        def __init__(self, folder: Path, *, begin: int = 0) -> None:
            begun.append(begin)
            super().__init__(folder, begin=begin)

    monkeypatch.setattr(recipe, "Events", Told)
    out = tmp_path / "a b"
    result = train("toy", "--out", out, "--learning-rate", "7")
    assert result.exit_code == 130
    settings = out / "run" / "settings.toml"
    last = result.stderr.splitlines()[-1]
    assert last == f"stopped after step 4; go on with: ossia train toy '{settings}' --resume"
    assert (out / "run" / "report.html").is_file()

    assert train("toy", settings, "--resume").exit_code == 0
    steps = [json.loads(line)["step"] for line in (out / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]
    assert begun == [0, 5]
    assert len(list((out / "run" / "tensorboard").iterdir())) == 2


def test_a_run_that_is_stopped_before_its_first_step_ends_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_settings: ToySettings, _report: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "ossia.train.toy", SimpleNamespace(ToySettings=ToySettings, train=stopped))
    result = train("toy", "--out", tmp_path)
    assert (result.exit_code, result.output.strip()) == (130, "")


def test_only_the_main_process_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    silent = SimpleNamespace(ToySettings=ToySettings, train=lambda settings, _report: settings.out)
    monkeypatch.setitem(sys.modules, "ossia.train.toy", silent)
    result = train("toy", "--out", tmp_path)
    assert (result.exit_code, result.output) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_written_anew(tmp_path: Path) -> None:
    train("toy", "--out", tmp_path)
    (tmp_path / "run" / "report.html").unlink()
    assert train("report", tmp_path).stdout == f"{tmp_path / 'run' / 'report.html'}\n"
    nothing = train("report", tmp_path / "absent")
    assert nothing.exit_code == 2
    assert (
        nothing.stderr
        == f"ossia: {tmp_path / 'absent' / 'run'}: holds no log of a run; give the folder that was --out\n"
    )


def test_data_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    turns = [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "hello there"}]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    counted = json.loads(train("data", path, "--json").stdout)
    (account,) = counted.values()
    assert account["records"] == 1
    assert 0 < account["learnt"] < account["kept"]
    shown = train("data", path).stdout
    assert "learnt" in shown
    assert "hello there<|return|>⟧" in shown
