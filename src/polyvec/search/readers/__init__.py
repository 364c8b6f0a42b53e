"""Readers: one short file per family of formats, from a file's bytes or text to pieces of text.

`polyvec.search.documents` has the table of kinds, which says what reads which files.
"""
