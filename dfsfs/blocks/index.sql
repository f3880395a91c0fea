-- Where the blocks of a store are, and the small ones themselves. Version 1.

-- One row for each block. segment > 0: the record at `position` of that segment file holds it.
-- segment = 0: it is small, and `position` is its id in the table small.
CREATE TABLE block (
    digest   BLOB PRIMARY KEY,
    segment  INTEGER NOT NULL,
    position INTEGER NOT NULL,
    length   INTEGER NOT NULL          -- bytes of the block
) WITHOUT ROWID;

CREATE TABLE small (
    id   INTEGER PRIMARY KEY,
    data BLOB NOT NULL
);

-- One row for each segment file; number 0 stands for the table small.
CREATE TABLE segment (
    number INTEGER PRIMARY KEY,
    indexed INTEGER NOT NULL,          -- records before this offset are in the index or removed
    synced INTEGER NOT NULL,           -- bytes before this offset are on stable storage
    blocks INTEGER NOT NULL,           -- live records
    bytes  INTEGER NOT NULL            -- of blocks in them, headers not counted
);

-- Records removed from the index whose space the disk has not got back yet.
CREATE TABLE garbage (
    segment  INTEGER NOT NULL,
    position INTEGER NOT NULL,
    length   INTEGER NOT NULL,
    PRIMARY KEY (segment, position)
) WITHOUT ROWID;

INSERT INTO segment VALUES (0, 0, 0, 0, 0);
