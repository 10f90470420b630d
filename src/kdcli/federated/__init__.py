"""Federated distillation: clients that train on rows of their own, and a server that averages what they learnt."""
