"""What tests share: runs, models, folders and fakes. Imported by full name, `tests.support.…`."""
