"""Several training runs compared, and two benches.

runs        metrics of a run, and a name that differs from those of the others
write       the tables and figures of runs
benches     two benches, point by point
"""
