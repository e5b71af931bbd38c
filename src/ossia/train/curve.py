"""The picture of a run: losses and expert loads over steps, from its log."""

import io
from pathlib import Path

from ossia.files import write_whole
from ossia.train.loop import read_log

CURVE = "curve.png"


def draw(run: Path) -> Path | None:
    """Draw `curve.png` into the folder of a run and return its place; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    lines = read_log(run)
    training = [line for line in lines if "loss" in line]
    heldout = [line for line in lines if "validation_loss" in line]
    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, loads = figure.subplots(2, 1, sharex=True)
    losses.plot([m["step"] for m in training], [m["loss"] for m in training], label="training", linewidth=0.8)
    losses.plot([m["step"] for m in heldout], [m["validation_loss"] for m in heldout], label="held out", marker=".")
    losses.set(ylabel="loss, nats a token", yscale="log")
    losses.legend()
    steps = [m["step"] for m in training]
    loads.plot(steps, [m["largest_load"] for m in training], label="busiest expert", linewidth=0.8)
    loads.plot(steps, [m["smallest_load"] for m in training], label="idlest expert", linewidth=0.8)
    loads.axhline(1, color="grey", linewidth=0.5)
    loads.set(xlabel="step", ylabel="load, 1 = even", ylim=(0, None))
    loads.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    write_whole(run / CURVE, picture.getbuffer())
    return run / CURVE
