"""What answers a request: bundle, FAISS retriever, engine, HTTP application."""
