"""Text for language models: sources, tokenizers, a stream of tokens, windows.

A source gives the documents of a split, a tokenizer makes one stream of tokens
of them, and an example is a window of the stream: see docs/text.md.
"""
