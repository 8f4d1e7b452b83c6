"""Several training runs compared, two benches, or two exams.

runs        metrics of a run, and a name that differs from those of the others
groups      runs that differ in the seed alone: means, spreads, paired differences
fair        which runs can be ranked together, and by which metric
tables, figures, write      what a comparison shows and leaves on disk
benches     two benches, point by point
exams       two exams, score by score
pair        what both read, and how their conditions differ
"""
