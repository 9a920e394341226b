from hypothesis import given
from hypothesis import strategies as st

from train.compression.allocation import Option, after, furthest, hull, path

lists = st.lists(st.builds(Option, st.integers(1, 1000), st.floats(0, 5)), min_size=1, max_size=12)
models = st.dictionaries(st.sampled_from("abcdef"), lists, min_size=1)


@given(lists)
def test_only_what_is_smaller_than_plain_is_worth_having(options):
    chain = hull(options)
    sizes = [options[i].size for i in chain]
    assert chain[0] == 0 and sizes == sorted(set(sizes), reverse=True)


@given(lists)
def test_nothing_off_the_hull_is_both_smaller_and_cheaper(options):
    chain = hull(options)
    for i, option in enumerate(options):
        if option.size < options[0].size and i not in chain:
            assert any(options[j].size <= option.size or options[j].cost <= option.cost for j in chain[1:])


@given(models)
def test_no_move_ever_makes_a_tensor_larger(tensors):
    moves = path(tensors)
    sizes = {name: options[0].size for name, options in tensors.items()}
    for move in moves:
        assert tensors[move.name][move.option].size < sizes[move.name]
        sizes[move.name] = tensors[move.name][move.option].size
    chosen = after(list(tensors), moves)
    assert {name: tensors[name][option].size for name, option in chosen.items()} == sizes


@given(models)
def test_the_cheapest_bytes_are_saved_first(tensors):
    at, slopes = dict.fromkeys(tensors, 0), []
    for name, option in path(tensors):
        before, now = tensors[name][at[name]], tensors[name][option]
        slopes.append(max(0.0, now.cost - before.cost) / (before.size - now.size))
        at[name] = option
    assert slopes == sorted(slopes)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_furthest_allowed_is_found(count, limit):
    assert furthest(count, lambda n: n <= limit) == min(count, limit)
