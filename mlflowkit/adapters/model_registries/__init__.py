"""Registries of models: where blessed bundles are pushed to and pulled from."""
