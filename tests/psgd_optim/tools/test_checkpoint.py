from pathlib import Path

import pytest
import torch

from psgd_optim.tools.checkpoint import (
    drop_copies_after,
    keep_copy,
    kept_copies,
    read_checkpoint,
    write_checkpoint,
)
from psgd_optim.types import InputError

CONTENT = {"x": torch.arange(5), "nested": {"step": 3, "name": "run"}}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "last.pt"
    write_checkpoint(path, "kind", CONTENT)
    content = read_checkpoint(path, "kind")
    torch.testing.assert_close(content["x"], CONTENT["x"], rtol=0, atol=0)
    assert content["nested"] == CONTENT["nested"]
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, "kind", CONTENT)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint(path, "kind", {"x": torch.zeros(9)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, part: float) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, "kind", CONTENT)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(InputError, match="damaged or truncated") as caught:
        read_checkpoint(path, "kind")
    assert "\n" not in str(caught.value)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, "psgd_lm", CONTENT)
    with pytest.raises(InputError, match="'psgd_lm'"):
        read_checkpoint(path, "psgd_rl")
    torch.save({"some": "thing"}, path)
    with pytest.raises(InputError, match="None"):
        read_checkpoint(path, "psgd_rl")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no checkpoint"):
        read_checkpoint(tmp_path / "none.pt", "kind")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"format": 1, "kind": "kind", "content": print}, path)
    with pytest.raises(InputError, match="damaged"):
        read_checkpoint(path, "kind")


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_disk_that_is_full_keeps_the_old_file_and_is_told_with_its_name(
    tmp_path: Path, size: int
) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, "kind", CONTENT)
    before = path.read_bytes()
    (tmp_path / "last.pt.partial").symlink_to("/dev/full")  # takes no byte
    with pytest.raises(OSError, match="No space") as caught:
        write_checkpoint(path, "kind", {"x": torch.zeros(size)})
    assert (caught.value.errno, caught.value.filename) == (28, str(path))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_the_newest_copies_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for step in (5, 10, 15, 100):
        write_checkpoint(path, "kind", {"step": step})
        keep_copy(path, step, 2)
    assert [p.name for p in kept_copies(tmp_path)] == ["step-000000015.pt", "step-000000100.pt"]
    assert [read_checkpoint(p, "kind")["step"] for p in kept_copies(tmp_path)] == [15, 100]
    drop_copies_after(tmp_path, 15)
    assert [p.name for p in kept_copies(tmp_path)] == ["step-000000015.pt"]
    keep_copy(path, 200, 0)
    assert len(kept_copies(tmp_path)) == 1


def test_what_a_kill_left_of_a_copy_goes(tmp_path: Path) -> None:
    """Else a link would hold a whole checkpoint's space for ever."""
    path = tmp_path / "last.pt"
    write_checkpoint(path, "kind", CONTENT)
    (tmp_path / "step-000000005.pt.partial").hardlink_to(path)
    drop_copies_after(tmp_path, 100)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_copies_are_made_where_files_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    path = tmp_path / "last.pt"
    write_checkpoint(path, "kind", CONTENT)
    keep_copy(path, 5, 1)
    assert kept_copies(tmp_path)[0].read_bytes() == path.read_bytes()
