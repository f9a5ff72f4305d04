import shutil

import pytest
import tiktoken.load

from psgd_lm.tokenizer import GPT2Tokenizer, decode, load_gpt2, tokenizer_from_dict
from psgd_optim.types import InputError


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    """Fail on any request, and find no cache of this machine's."""

    def refuse(path: str) -> bytes:
        raise AssertionError(f"asked for {path}")

    monkeypatch.setattr(tiktoken.load, "read_file", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no_cache"))


@pytest.mark.parametrize("name", ["gpt2_bpe/vocab.bpe", "tiktoken_cache"])
def test_local_files_give_gpt2s_tokens(real_data, tmp_path, name):
    if name == "tiktoken_cache":
        cached = real_data("tiktoken_cache/0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4")
        shutil.copy(cached, tmp_path / "r50k_base.tiktoken")
    else:
        shutil.copy(real_data(name), tmp_path / "vocab.bpe")
    tokenizer = load_gpt2(str(tmp_path))
    assert tokenizer.vocab_size == 50_257
    assert tokenizer.start_token == 198
    text = "hello world <|endoftext|>\nIt's 1st, naïve 日本 😀  \n\n x"
    assert tokenizer.encode("hello world").tolist() == [31373, 995]
    assert decode(tokenizer, tokenizer.encode(text).tolist()) == text
    assert int(tokenizer.byte_lengths()[tokenizer.encode(text)].sum()) == len(text.encode())


def test_cache_of_tiktokens_is_found(real_data, monkeypatch):
    cached = real_data("tiktoken_cache/6d1cbeee0f20b3d9449abfede4726ed8212e3aee")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cached.parent))
    tokenizer = load_gpt2(None, "<|endoftext|>")
    assert tokenizer.encode("a<|endoftext|>").tolist() == [64, 50256]
    assert tokenizer.start_token == 50256


def test_it_is_saved_whole(real_data):
    tokenizer = load_gpt2(str(real_data("gpt2_bpe/vocab.bpe").parent), "###")
    again = tokenizer_from_dict(tokenizer.to_dict())
    assert isinstance(again, GPT2Tokenizer)
    assert again.encode("hello world###").tolist() == [31373, 995, 50256]


def test_missing_files_are_named_with_the_way_out(tmp_path):
    message = r"no GPT-2 vocabulary in .*no_cache; give --gpt2-files .*TIKTOKEN_CACHE_DIR"
    with pytest.raises(InputError, match=message) as error:
        load_gpt2(None)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=str(tmp_path)):
        load_gpt2(str(tmp_path))


def test_cache_that_is_switched_off_is_no_folder(monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    with pytest.raises(InputError, match="cache, which is switched off"):
        load_gpt2(None)


@pytest.mark.parametrize("name", ["r50k_base.tiktoken", "vocab.bpe"])
def test_damaged_files_are_refused(tmp_path, name):
    (tmp_path / name).write_text("!!! 0\nIQ== 1\n")
    with pytest.raises(InputError, match=rf"{name} is not GPT-2's vocabulary, or damaged"):
        load_gpt2(str(tmp_path))
