"""Makes data sets of WebDataset tars that another program wrote: tars in, indexes and a manifest out; no tar is changed or copied.

`index_tars.index` does it all; `splits` chooses among the tars, `class_names` finds the names of the classes, `records` keeps the state
of unfinished work, and `remarks` says what was left out.

Public names: `index_tars.IndexRequest`, `index_tars.IndexResult`, `index_tars.index`, `index_tars.as_text`.
"""
