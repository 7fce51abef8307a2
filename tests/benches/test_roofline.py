"""The roofline plot: what is drawn, where, and that every marker is named."""

import pytest

from benches import roofline
from benches.results import load
from tests.benches.saved import save_pytest

PEAKS = {"peak_gb_per_s": 4000.0, "peak_tflop_per_s": 800.0, "share_of_roofline": 0.5}


def test_a_picture_with_a_marker_for_each_bench(tmp_path, capsys):
    info = {"flops": 2e9, "bytes": 1e9, "dtype": "bfloat16", **PEAKS}
    path = save_pytest(tmp_path / "a.json", {"x[small]": 1e-3, "y": 2e-3}, **info)
    picture = tmp_path / "roofline.png"
    assert roofline.main([str(path), "-o", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "2 benches drawn" in capsys.readouterr().out
    results = load(path)
    figure = roofline.draw(results, roofline.plotted(results))
    (axes,) = figure.axes
    drawn = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines[1:]}
    assert drawn == {(2.0, 2e12), (2.0, 1e12)}
    roof = axes.lines[0]
    assert roof.get_xdata()[1] == pytest.approx(200), "the ridge is where the two peaks meet"
    assert max(roof.get_ydata()) == 800e12
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {"1  x small  50%", "2  y  50%"}


def test_benches_without_work_cannot_be_drawn(tmp_path, capsys):
    path = save_pytest(tmp_path / "a.json", {"x": 1e-3})
    with pytest.raises(SystemExit):
        roofline.main([str(path), "-o", str(tmp_path / "x.png")])
    assert "expected benches with FLOPs" in capsys.readouterr().err
