"""Corpora of text, made of what Debian's packages hold: `docs/corpora.md`."""
