"""A corpus: the alphabet, again and again."""

import string

from seqzoo.data.corpora import Corpus


def alphabet() -> Corpus:
    return Corpus("alphabet", string.ascii_lowercase * 1000, "the alphabet, a thousand times")
