import pytest

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training import ContrastiveTrainingArguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"license": "apache2"}, r"license='apache2' is not a name that the Hub knows, such as apache-2\.0"),
        ({"license": "MIT"}, "such as mit"),
        ({"license": "my own"}, "give 'other' for a license that is not on its list"),
        ({"language": ["English"]}, "language='English' is not a code of two or three letters"),
        ({"language": ["en", "False"]}, "language='False'"),
    ],
)
def test_a_license_or_language_that_the_hub_does_not_know_is_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        ContrastiveTrainingArguments(output_dir=str(tmp_path), **options)


def test_those_that_it_knows_are_taken(tmp_path):
    for name in ("apache-2.0", "cc-by-sa-4.0", "openrail++", "other", None):
        options = {"license": name, "language": ["en", "deu", "multilingual"]}
        assert ContrastiveTrainingArguments(output_dir=str(tmp_path), **options).license == name
