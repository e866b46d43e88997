"""Remote data sources, one kind a file; see `mlflowkit.data_access.remote_source`."""
