"""Serving: bundle, FAISS retriever, engine and HTTP application."""
