"""Benches (``pytest benches``) and the figures this repository claims (``make figures``)."""
