"""How results are shown.

text        numbers, lengths, tables in Markdown and CSV
figures     one look for every figure, one colour for each family
page        HTML pages that need no network
statistics  quantiles for intervals
"""
