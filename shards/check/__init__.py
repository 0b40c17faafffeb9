"""Looks at finished data sets: the URL of one in, its problems (`verify.verify`) or its description (`inspect.inspect`) out.

Public names: `verify.verify`, `verify.Findings`, `verify.Problem`; `inspect.inspect`, `inspect.Summary`, `inspect.SampleSummary`,
`inspect.as_text`, `inspect.as_json`.
"""
