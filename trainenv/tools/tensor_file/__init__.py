"""Files of tensors: a JSON header, a JSON manifest, then compressed chunks; no pickle.

    magic 8 · header length 8 · manifest length 8 · digest 16 bytes, little-endian
    header      JSON: what the file is, and dtype and shape of each tensor
    manifest    JSON, padded with spaces: for each chunk its xxh3-64 and the lengths of its planes
    chunks      in the order of the header, end to end

The digest is the xxh3-128 of both lengths, header and manifest. It covers the manifest, and the
manifest holds the checksum of each chunk, so every byte of the file is covered. The position of a
chunk follows from the lengths before it: chunks cannot overlap or leave gaps.

Checkpoints and traces are such files. `front` reads and writes header and manifest, `layout` says
where the chunks are, `chunks` reads and writes them, and `arrays` is the whole for plain arrays.
"""
