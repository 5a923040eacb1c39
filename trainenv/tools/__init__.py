"""Small tools that know nothing of training: files, checks, words, optional packages."""
