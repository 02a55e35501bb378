from nodetok.language.vocabulary import train_tokenizer

TEXTS = ["What is the class of [[0]] ?", "hops between 12 and 345 ?", "Neural networks, neural graphs"]


def test_padding_end_and_unknown_are_the_first_three_words():
    made = train_tokenizer(TEXTS)
    assert (made.pad_token_id, made.eos_token_id, made.unk_token_id) == (0, 1, 2)
    assert made("Ω", add_special_tokens=False)["input_ids"] == [2]


def test_words_are_read_without_case_and_numbers_digit_by_digit():
    made = train_tokenizer(TEXTS)
    low, high = (made(text, add_special_tokens=False)["input_ids"] for text in ("neural GRAPHS", "Neural graphs"))
    assert low == high
    assert made.unk_token_id not in low
    assert made.tokenize("345") == ["3", "4", "5"]
    assert made.decode(made("What is the class of", add_special_tokens=False)["input_ids"]) == "what is the class of"


def test_the_same_texts_give_the_same_words_and_no_more_than_asked_for():
    one, two = train_tokenizer(TEXTS), train_tokenizer(iter(TEXTS))
    assert one.get_vocab() == two.get_vocab()
    many = [f"word{i} other{i * 7}" for i in range(200)]
    assert len(train_tokenizer(many, vocabulary=60)) <= 60


def test_words_never_seen_are_read_in_pieces_of_known_letters():
    made = train_tokenizer(TEXTS)
    ids = made("swan", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert made.decode(ids) == "swan"
