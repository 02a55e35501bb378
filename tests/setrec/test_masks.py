import torch
from hypothesis import given
from hypothesis import strategies as st

from setrec.models import masks

small = st.integers(1, 5)


@given(a=small, items=small, m=small, causal=st.booleans())
def test_an_item_token_sees_the_instruction_earlier_items_and_itself_only(a, items, m, causal):
    mask = masks.history_mask(a, items, m, causal_instruction=causal)
    for k in range(items):
        for s in range(m):
            row = a + k * m + s
            expected = set(range(a + k * m)) | {row}
            assert set(torch.nonzero(mask[row]).flatten().tolist()) == expected


@given(a=small, items=small, m=small)
def test_the_instruction_never_sees_an_item(a, items, m):
    for causal in (True, False):
        mask = masks.history_mask(a, items, m, causal_instruction=causal)
        assert not mask[:a, a:].any()
        assert mask[:a, :a].all() == (not causal or a == 1)


@given(a=small, items=small, m=small, n=small, data=st.data())
def test_a_query_sees_the_instruction_and_exactly_the_visible_items(a, items, m, n, data):
    visible = torch.tensor([data.draw(st.lists(st.integers(0, items), min_size=2, max_size=2))])
    mask = masks.query_mask(visible, n, a, items, m)
    assert mask.shape == (1, 2 * n, a + items * m)
    for q, count in enumerate(visible[0].tolist()):
        block = mask[0, q * n : (q + 1) * n]
        assert (block.sum(dim=1) == a + count * m).all()
        assert block[:, : a + count * m].all()


def test_tokens_of_an_item_share_a_position_and_queries_stand_where_the_next_item_would():
    assert masks.history_positions(2, 3, 2).tolist() == [0, 1, 2, 2, 3, 3, 4, 4]
    assert masks.query_positions(torch.tensor([[1, 3]]), 2, 2).tolist() == [[3, 3, 5, 5]]
    assert masks.history_positions(2, 3, 1).tolist() == [0, 1, 2, 3, 4]
