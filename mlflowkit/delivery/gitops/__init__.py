"""GitOps: the desired digests of a service as a file in git, and what promotes, settles and follows it."""
