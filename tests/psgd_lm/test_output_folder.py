from pathlib import Path

import pytest

from psgd_lm.output_folder import OLD, PARTIAL, replacing, restore


def contents(path):
    return {file.name: file.read_text() for file in path.iterdir()}


def test_new_folder_takes_the_place_of_the_old_one(tmp_path):
    out = tmp_path / "out"
    for text in ("one", "two"):
        with replacing(out) as folder:
            (folder / text).write_text(text)
        assert contents(out) == {text: text}
    assert list(tmp_path.iterdir()) == [out]


def test_failure_leaves_the_old_one(tmp_path):
    out = tmp_path / "out"
    with replacing(out) as folder:
        (folder / "a").write_text("a")
    with pytest.raises(KeyboardInterrupt), replacing(out) as folder:
        (folder / "b").write_text("b")
        raise KeyboardInterrupt
    assert contents(out) == {"a": "a"}
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("killed", ["before", "between", "after"])
def test_process_killed_at_any_moment_leaves_one_of_them(tmp_path, killed):
    out, old, partial = (tmp_path / f"out{end}" for end in ("", OLD, PARTIAL))
    present = {"before": (out, partial), "between": (old, partial), "after": (out, old)}[killed]
    for path in present:
        path.mkdir()
        (path / "a").write_text(path.name)
    restore(out)
    assert contents(out) == {"a": "out.old" if killed == "between" else "out"}
    with replacing(out) as folder:
        assert not list(folder.iterdir())


def test_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("a")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(PARTIAL):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"), replacing(out):
        pass
    assert contents(out) == {"a": "a"}
    assert list(tmp_path.iterdir()) == [out]
