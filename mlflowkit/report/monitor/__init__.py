"""The page of a service's monitor, live in the admin server and as one self-contained file."""
