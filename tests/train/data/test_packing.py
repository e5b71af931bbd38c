from hypothesis import given
from hypothesis import strategies as st

from ossia.train.data.packing import Document, collate, shares


def test_collate_lays_documents_end_to_end_and_shifts_targets():
    batch = collate(
        [Document([5, 6, 7, 8], [False, False, True, True]), Document([1, 2, 3], [False, True, False])],
    )
    assert batch.lengths == (3, 4)
    assert batch.token_ids.tolist() == [1, 2, 3, 5, 6, 7, 8]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert batch.rows.tolist() == [0, 4, 5]
    assert batch.targets.tolist() == [2, 7, 8]


@given(lengths=st.lists(st.integers(2, 50), min_size=1, max_size=30), world=st.integers(1, 8))
def test_shares_are_everything_once_and_even(lengths, world):
    documents = [Document([number] * length, [False] * length) for number, length in enumerate(lengths)]
    cut = shares(documents, world)
    assert sorted(document.token_ids[0] for share in cut for document in share) == list(range(len(lengths)))
    tokens = [sum(map(len, share)) for share in cut]
    assert max(tokens) - min(tokens) <= max(lengths)
    assert len(lengths) < world or all(cut)
