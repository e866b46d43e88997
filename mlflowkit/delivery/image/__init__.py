"""Images and bundles in a registry: their parts, their attestations, and how they are built and checked."""
