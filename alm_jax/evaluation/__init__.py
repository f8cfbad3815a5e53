"""Evaluation: embeddings of a split, retrieval, zero-shot classification and the report. NumPy throughout."""
