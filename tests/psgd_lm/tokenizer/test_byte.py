from psgd_lm.tokenizer import ByteTokenizer


def test_tokens_are_the_bytes():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aø\n").tolist() == [97, 0xC3, 0xB8, 10]
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.start_token == 10
    assert tokenizer.byte_lengths().tolist() == [1] * 256
