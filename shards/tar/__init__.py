"""Reads tars, of any program: URLs in, members, samples and versions out; a damaged or cut tar is an error, never a short list.

`listing.list_tars` finds the tars that URLs name, `version.look_up` asks a store for the version of one, `reader.TarReader` reads one as a
file, `samples.walk` yields its members and `samples.scan` its samples. `member` reads headers fast.
"""
