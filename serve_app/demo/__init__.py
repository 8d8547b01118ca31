"""The demo model: its corpus, tokenizer, training and evaluation. The service itself needs only the written files."""
