"""A corpus: the alphabet, repeated."""

import string

from seqzoo.data.corpora import Corpus


def alphabet() -> Corpus:
    return Corpus("alphabet", string.ascii_lowercase * 1000, "the alphabet, 1,000 times")
