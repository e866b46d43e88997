"""Kubernetes manifests as values: what the targets kubernetes, argocd and flux are made of. Pure."""
