"""Classifiers of texts: tiny nets of a spec, folders of transformers, and logistic regression."""
