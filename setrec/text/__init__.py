"""Text features of items: lexical (TF-IDF) vectors."""
