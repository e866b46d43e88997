"""The files of DVC: which outputs a commit has, and where their bytes are."""
