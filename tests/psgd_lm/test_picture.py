import struct

import pytest
from matplotlib.figure import Figure

from psgd_lm.picture import Curve, Family, Level, draw_curves


def curve(label, count, factor=1.0):
    values = [factor * 4.0 / (i + 1) for i in range(count)]
    return Curve(
        label=label,
        steps=list(range(count)),
        seconds=[0.5 * i for i in range(count)],
        mean=values,
        lowest=values,
        highest=[value + 0.1 for value in values],
    )


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    original = Figure.savefig

    def savefig(self, *args, **kwargs):
        figures.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def test_picture_is_a_png_of_readable_size(tmp_path):
    path = tmp_path / "curves.png"
    families = [Family(best=curve("psgd", 5)), Family(best=curve("adamw", 1))]
    draw_curves(families, [Level(label="zlib -9", loss=2.1)], path)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 1000
    assert height >= 400


def test_best_runs_are_bold_others_thin_of_one_colour_and_nothing_hides_them(tmp_path, drawn):
    family = Family(best=curve("psgd", 9), others=[curve("psgd, lr 9", 9, 100.0)])
    target = Level(label="target 0.5", loss=0.5, style="--")
    draw_curves([family], [target], tmp_path / "curves.png")
    axes = drawn[0].axes[0]
    other, best, level = axes.lines
    assert best.get_linewidth() > 2 * other.get_linewidth()
    assert best.get_color() == other.get_color()
    assert list(level.get_ydata()) == [0.5, 0.5]
    assert axes.get_legend_handles_labels()[1] == ["psgd", "target 0.5"]
    bottom, top = axes.get_ylim()
    assert bottom < 4 / 9
    assert 0.5 < top < 4


def test_no_curves_still_make_a_picture(tmp_path):
    draw_curves([], [], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
