"""Entities, relations and paths are counted from what the sentences say."""

from hypothesis import given
from hypothesis import strategies as st

from rag import graph

TEXT = (
    "The Transport Manager selects BetaNet or QUIC. BetaNet tunnels through HTTPS. We like gradient descent. "
    "People met at the University of Oxford. The gradient descent converged."
)


def test_entities_are_names_and_repeated_phrases():
    assert set(graph.entities([TEXT])[0]) == {
        "Transport Manager", "BetaNet", "QUIC", "HTTPS", "University of Oxford", "gradient descent",
    }  # fmt: skip


def test_relations_count_the_sentences_that_name_both():
    named = graph.together("Ann met Bob. Bob met Ann and Cid. Annex.", ["Ann", "Bob", "Cid"])
    assert named == [("Ann", "Bob"), ("Ann", "Bob", "Cid")]
    assert graph.relations(named) == {("Ann", "Bob"): 2, ("Ann", "Cid"): 1, ("Bob", "Cid"): 1}


def test_a_path_runs_from_the_query_over_shared_sentences():
    named = graph.together(TEXT, graph.entities([TEXT])[0])
    found = {path.nodes for path in graph.paths("what is the transport manager", named)}
    assert ("Transport Manager", "BetaNet", "HTTPS") in found
    assert not any("University of Oxford" in nodes for nodes in found)


def test_no_path_for_a_query_that_names_nothing():
    assert graph.paths("how much does it cost", [("Ann", "Bob")]) == []


@given(st.lists(st.lists(st.sampled_from("ABCDEF"), unique=True, max_size=4), max_size=12), st.sampled_from("ABCDEF"))
def test_every_step_of_a_path_is_a_relation_and_no_node_comes_twice(named, asked):
    relations = graph.relations(named)
    for path in graph.paths(f"about {asked}", named):
        assert 0 < path.strength < 1
        assert len(set(path.nodes)) == len(path.nodes) <= graph.MAX_NODES
        assert all(tuple(sorted(step)) in relations for step in zip(path.nodes, path.nodes[1:], strict=False))
