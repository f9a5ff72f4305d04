import struct

from psgd_lm.picture import Curve, draw_curves


def curve(label, count):
    values = [4.0 / (i + 1) for i in range(count)]
    return Curve(
        label=label,
        steps=list(range(count)),
        seconds=[0.5 * i for i in range(count)],
        mean=values,
        lowest=values,
        highest=[value + 0.1 for value in values],
    )


def test_picture_is_a_png_of_readable_size(tmp_path):
    path = tmp_path / "curves.png"
    draw_curves([curve("psgd", 5), curve("adamw", 1)], 2.1, path)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 1000
    assert height >= 400


def test_no_curves_still_make_a_picture(tmp_path):
    draw_curves([], 2.1, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
