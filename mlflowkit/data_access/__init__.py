"""Data that is elsewhere: resolved to one version at plan time, fetched from that version only, checked and kept."""
