"""Table 1: what a trained network paints into holes, beside fills that need no network, on the same pictures and masks.

In: a run, and a data set of pictures that it was not trained on. Out: one table of errors with intervals, as text, CSV and JSON, and a
grid with a column for each method.

method         the interface of everything that fills holes (Holes, Method)

Nothing is imported here.
"""
