"""Answers are made of the sources' own sentences, and their confidence grows with the evidence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.answer import NOTHING, answer_mode, compose, extract
from rag.calibration import KnowledgeConfig, WriterRule, load
from rag.index import Hit
from rag.model import AnswerMode, Writer
from rag.retrieval import Passage, by_document, evidence
from rag.words import coverage, stems

RULE = WriterRule(min_parameters=100, max_held_out_loss=3.0, unmeasured_parameters=1000)
SHARE = st.floats(0, 1)


def passage(text, document_id="doc_a", cosine=0.5, covered=0.5):
    hit = Hit(f"{document_id}:r:{text[:3]}", document_id, "r", 0, len(text), "", text, (), None, 1.0)
    return Passage(hit, cosine, covered, 0.5)


def test_the_shipped_calibration_is_fitted_and_better_than_the_base_rate():
    config = load()
    assert isinstance(config, KnowledgeConfig)
    figures = config.calibration.figures
    assert figures["source_brier"] < figures["source_base_rate_brier"]
    assert figures["answer_brier"] < figures["answer_base_rate_brier"]


@given(SHARE, SHARE, SHARE, SHARE)
def test_more_evidence_never_means_less_confidence(a, b, c, d):
    calibration = load().calibration
    (low, high), (less, more) = sorted((a, b)), sorted((c, d))
    for judge in (calibration.relevance, calibration.confidence):
        assert 0 < judge(low, less) <= judge(high, more) < 1
        assert judge(None, less) <= judge(None, more)


def test_an_answer_is_the_nearest_sentence_with_its_source():
    found = [
        passage("Cats purr. Dogs bark loudly."),
        passage("# Heading\nQUIC has the highest throughput. It is new.", "doc_b"),
    ]
    picked = extract("Which transport has the highest throughput?", None, found, None)
    assert compose(picked, cited=True) == "QUIC has the highest throughput. [2]"
    assert compose(picked, cited=False) == "QUIC has the highest throughput."


def test_what_two_sources_both_say_is_said_once():
    found = [passage("The pump runs at night."), passage("The pump runs at night.", "doc_b")]
    assert len(extract("When does the pump run?", None, found, None)) == 1


def test_sentences_are_compared_by_meaning_where_there_is_an_embedder():
    found = [passage("The feline slept. The invoice is due.")]

    def embed(texts):
        return np.array([[1.0, 0.0] if "feline" in text else [0.0, 1.0] for text in texts], dtype=np.float32)

    picked = extract("where is my cat", np.array([1.0, 0.0], dtype=np.float32), found, embed)
    assert [sentence.text for sentence in picked] == ["The feline slept."]


def test_without_a_source_there_is_no_answer():
    assert compose(extract("anything", None, [], None), cited=True) == NOTHING
    assert evidence([]) == (None, 0.0)


@pytest.mark.parametrize(
    ("writer", "mode", "because"),
    [
        (None, AnswerMode.EXTRACTIVE, "no model"),
        (Writer("tiny", 99, 1.0), AnswerMode.EXTRACTIVE, "100 are needed"),
        (Writer("rough", 100, 3.1), AnswerMode.EXTRACTIVE, "above 3"),
        (Writer("good", 100, 3.0), AnswerMode.GENERATIVE, "3.00 nats"),
        (Writer("unknown", 999), AnswerMode.EXTRACTIVE, "nobody has measured"),
        (Writer("large", 1000), AnswerMode.GENERATIVE, "1,000 parameters"),
    ],
)
def test_a_model_writes_when_what_was_measured_of_it_allows(writer, mode, because):
    decided, reason = answer_mode(writer, RULE)
    assert decided is mode and because in reason


def test_a_document_stands_for_its_first_passage():
    found = [passage("One"), passage("Two", "doc_b"), passage("Three")]
    assert [p.hit.text for p in by_document(found)] == ["One", "Two"]


def test_coverage_meets_other_forms_of_a_word():
    assert coverage(stems("boundary layers heated"), "the boundary layer was heating up") == 1.0
    assert coverage(stems("the of"), "anything") == 0.0
