"""Small tools that know nothing of training: imports of optional packages, and files on every platform."""
