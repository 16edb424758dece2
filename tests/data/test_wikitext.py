"""WikiText as people write it."""

import pytest

from jaxnlp.data.wikitext import detokenized, n_words


@pytest.mark.parametrize(
    "text, plain",
    [
        (" 17 @-@ inch , it 's ( then ) $ 1 @,@ 000 \n", "17-inch, it's (then) $1,000\n"),
        (' The <unk> is " new " . \n', 'The <unk> is "new".\n'),
        (' " A " and " B " \n "', '"A" and "B"\n"'),
        (" = Robert = \n \n = = Early life = = \n", "= Robert =\n\n== Early life ==\n"),
        (" don 't ; they 'll see : 5 % of 0 @.@ 5 , 1 – 2 [ sic ] ? \n", "don't; they'll see: 5% of 0.5, 1–2 [sic]?\n"),
        (" the ' old ' one – here \n", "the ' old ' one – here\n"),
    ],
)
def test_what_tokenisation_put_in_is_taken_out(text, plain):
    assert detokenized(text) == plain
    assert detokenized(plain) == plain


def test_words_are_counted_with_ends_of_lines():
    assert n_words(" \n = Robert = \n the <unk> @-@ b . \n") == 3 + 5 + 3
