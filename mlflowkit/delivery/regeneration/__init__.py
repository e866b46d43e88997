"""Generated files in a repository: written once, and generated again without losing what their users changed.

`export_lock` remembers what was written last, `file_changes` decides per file (pure but for `git merge-file`), and
`file_writer` carries all of it out or none.
"""
