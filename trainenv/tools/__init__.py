"""Small tools that know nothing of training: files, checks, words, what a platform or an installation lacks."""
