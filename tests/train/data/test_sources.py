from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.errors import DataError
from ossia.train.data.sources import Source, after, shuffled, source_of


@given(count=st.integers(1, 300), key=st.text(max_size=5))
def test_shuffling_is_a_permutation(count, key):
    assert sorted(shuffled(place, count, key=key) for place in range(count)) == list(range(count))


def test_every_place_is_likely_for_every_record():
    """Chi-squared of where each of 5 records lands in 2,000 shuffles: of 16 degrees of freedom, 40 is one in 1,000."""
    seen = Counter((shuffled(place, 5, key=str(turn)), place) for turn in range(2000) for place in range(5))
    assert sum((seen[record, place] - 400) ** 2 / 400 for record in range(5) for place in range(5)) < 40


@given(weights=st.lists(st.floats(0.05, 5), min_size=1, max_size=5))
def test_a_mixture_keeps_its_shares_at_every_moment(weights):
    source = Source(parts=(), weights=tuple(weights), seed=0)
    counts = tuple(0 for _ in weights)
    for given_out in range(1, 200):
        counts = after(counts, source.turn(counts))
        assert sum(counts) == given_out
        for weight, count in zip(weights, counts, strict=True):
            assert abs(count - given_out * weight / sum(weights)) < len(weights)


def test_a_file_is_gone_through_in_another_order_each_time(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("\n\n\n".join(f"document {number}" for number in range(20)))
    first, second = ([source_of(str(path), seed=1).index(0, 20 * e + p) for p in range(20)] for e in (0, 1))
    other = [source_of(str(path), seed=2).index(0, place) for place in range(20)]
    assert sorted(first) == sorted(second) == sorted(other) == list(range(20))
    assert len({tuple(first), tuple(second), tuple(other), tuple(range(20))}) == 4


def test_specs_name_sources_and_weights(tmp_path):
    path = tmp_path / "odd*name.txt"
    path.write_text("text")
    source = source_of(["demo*0.5", "demo-text", f"{path}*2"], seed=0)
    assert [part.name for part in source.parts] == ["demo", "demo-text", str(path)]
    assert source.weights == (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "no data is named"),
        ("demo*0", "the weight after .* is '0'; give a number above 0"),
        ("demo*nan", "the weight after"),
        ("demo*half", r"demo\*half: the weight after .* is 'half'"),
        ("dmeo", "dmeo: name a .jsonl or a .txt file"),
        ("nowhere.jsonl", "nowhere.jsonl: cannot be read"),
    ],
)
def test_a_spec_that_names_nothing_is_refused(specs, message):
    with pytest.raises(DataError, match=message):
        source_of(specs, seed=0)
