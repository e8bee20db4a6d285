"""`--columns NAME=COLUMN`: the user's columns by our names, and each mistake in one sentence."""

import pytest

from modeling_layerpool.common.columns import ColumnNames
from modeling_layerpool.common.errors import InputError


KNOWN = ("anchor", "positive", "negative", "negative_N")


def test_a_column_is_read_by_our_name_and_others_by_their_own():
    names = ColumnNames.parse(["anchor=query", "negative_12=worst"], KNOWN)
    assert names.of(["id", "query", "worst"]) == {"anchor": "query", "negative_12": "worst", "id": "id"}


def test_data_without_the_column_are_read_by_our_name():
    names = ColumnNames.parse(["anchor=query", "positive=answer"], KNOWN)
    assert names.of(["anchor", "positive"]) == {"anchor": "anchor", "positive": "positive"}


def test_the_named_column_goes_before_one_of_our_name():
    names = ColumnNames.parse(["anchor=query"], KNOWN)
    assert names.of(["anchor", "query"]) == {"anchor": "query"}
    swapped = ColumnNames.parse(["anchor=positive", "positive=anchor"], KNOWN)
    assert swapped.of(["anchor", "positive"]) == {"anchor": "positive", "positive": "anchor"}


def test_of_several_columns_for_a_name_the_first_that_is_there_is_read():
    names = ColumnNames.parse(["anchor=question", "anchor=query"], KNOWN)
    assert names.of(["query", "text"])["anchor"] == "query"
    assert names.of(["query", "question"]) == {"anchor": "question", "query": "query"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["query"], "--columns query: expected NAME=COLUMN, for example anchor=query"),
        (["=query"], "--columns =query: expected NAME=COLUMN"),
        (["anchor="], "--columns anchor=: expected NAME=COLUMN"),
        (["ancor=query"], "'ancor' is not read here; use one of anchor, positive, negative, negative_N"),
        (["negative_0=query"], "'negative_0' is not read here"),
        (["anchor=query", "positive=query"], "the column 'query' is given for both 'anchor' and 'positive'"),
    ],
)
def test_a_mistake_is_one_sentence(values, message):
    with pytest.raises(InputError) as error:
        ColumnNames.parse(values, KNOWN)
    assert message in str(error.value)


def test_a_column_that_no_data_have_is_named():
    names = ColumnNames.parse(["anchor=question", "anchor=query"], KNOWN)
    names.of(["query", "answer"])
    with pytest.raises(InputError, match=r"no data have the column 'question', .* \(columns: query, answer\)"):
        names.check_seen()
    names.of(["question"])
    names.check_seen()
