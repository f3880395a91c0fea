-- The namespace of one node. Version 1.
--
-- Two sorts of columns. ROW columns hold replicated state: rows of six kinds, each a last-writer-wins
-- register with the stamp (time, origin) of the transaction that wrote it; every index ending in
-- `_stamp` serves the feed. DERIVED columns and tables are a function of the rows (the view), kept
-- up to date in the transaction that changes a row, and never sent. Names are BLOBs.

-- This node's own state; one line.
CREATE TABLE state(
  origin INTEGER NOT NULL,       -- whose counters these are; another origin starts from zero
  position INTEGER NOT NULL,     -- stamp time of our newest transaction
  counter INTEGER NOT NULL,      -- inode and link ids given out so far
  files INTEGER NOT NULL,        -- derived: shown inodes that are not directories
  directories INTEGER NOT NULL,  -- derived: shown directories, the root included
  bytes INTEGER NOT NULL         -- derived: sum of the sizes of shown regular files; from 2**63
                                 -- on a BLOB of 16 bytes, big-endian
);
INSERT INTO state VALUES(0, 0, 0, 0, 1, 0);

-- Other origins: everything up to `time` has been joined, without gaps.
CREATE TABLE have(origin INTEGER PRIMARY KEY, time INTEGER NOT NULL);

-- Node rows and touch rows. A line whose node row has not come yet has kind 0.
CREATE TABLE inode(
  inode INTEGER PRIMARY KEY,
  kind INTEGER NOT NULL,                     -- FileKind; 0: no node row yet
  mode INTEGER NOT NULL,                     -- at birth
  uid INTEGER NOT NULL,                      -- at birth
  gid INTEGER NOT NULL,                      -- at birth
  rdev INTEGER NOT NULL,
  target BLOB NOT NULL,                      -- symlinks
  time INTEGER NOT NULL,                     -- stamp of birth
  origin INTEGER NOT NULL,
  touch_time INTEGER NOT NULL DEFAULT 0,     -- touch row: the last change of a directory's names, or
  touch_origin INTEGER NOT NULL DEFAULT 0,   --   of a file's link count; 0: none
  -- derived
  set_mode INTEGER,                          -- from attribute rows; NULL: as at birth
  set_uid INTEGER,
  set_gid INTEGER,
  atime_ns INTEGER,                          -- from an attribute row or this node alone; NULL: birth
  mtime_ns INTEGER NOT NULL DEFAULT 0,
  changed INTEGER NOT NULL DEFAULT 0,        -- greatest stamp time of its rows (not tombstones): ctime
  explicit INTEGER NOT NULL DEFAULT 0,       -- files: links explicitly live; directories: 1 while live
  nlink INTEGER NOT NULL DEFAULT 0,          -- files: shown links; directories: shown child directories
  children INTEGER NOT NULL DEFAULT 0,       -- directories: live links whose effective parent this is
  writer INTEGER,                            -- regular files: whose content row is shown
  siblings INTEGER NOT NULL DEFAULT 0,       -- regular files: distinct contents nobody has replaced
  size INTEGER NOT NULL DEFAULT 0            -- regular files: of the shown content
);
CREATE INDEX inode_stamp ON inode(origin, time);
CREATE INDEX inode_touch_stamp ON inode(touch_origin, touch_time) WHERE touch_origin > 0;
-- The root is nobody's row: every network has it.
INSERT INTO inode(inode, kind, mode, uid, gid, rdev, target, time, origin, explicit)
  VALUES(1, 4, 493, 0, 0, 0, x'', 0, 0, 1);

-- Link rows: a directory entry. The first link of an inode has the inode's number.
CREATE TABLE link(
  link INTEGER PRIMARY KEY,
  inode INTEGER NOT NULL,
  parent INTEGER NOT NULL,
  name BLOB NOT NULL,
  previous INTEGER NOT NULL,     -- directories: the parent before the last move, to break cycles
  class INTEGER NOT NULL,        -- directories: merge class; 1 made under this name, 0 moved here,
                                 --   an inode id: moved together with others of that merged directory
  time INTEGER NOT NULL,
  origin INTEGER NOT NULL,
  -- derived
  live INTEGER NOT NULL,         -- 0 dead, 1 explicitly, 2 implicitly (revived)
  directory INTEGER,             -- where it is shown: representative of the effective parent; NULL: dead
  role INTEGER NOT NULL          -- 0 dead, 1 alone under its name, 2 keeps a contested name,
                                 --   3 shown under a conflict name, 4 hidden: the same thing as another
);
CREATE INDEX link_stamp ON link(origin, time);
CREATE INDEX link_slot ON link(directory, name) WHERE directory IS NOT NULL;
CREATE INDEX link_inode ON link(inode) WHERE inode <> link;
CREATE INDEX link_irregular ON link(inode) WHERE role > 1;
CREATE INDEX link_loser ON link(directory) WHERE role = 3;
CREATE INDEX link_implicit ON link(inode) WHERE live = 2;
-- Conflict copies that somebody has since made explicit: their name still says what they are.
CREATE INDEX link_conflict ON link(directory, name)
  WHERE directory IS NOT NULL AND instr(name, CAST(' (conflict from ' AS BLOB)) > 0;

-- Tombstones of links. One counts while it saw the link row's present stamp.
CREATE TABLE tombstone(
  link INTEGER PRIMARY KEY,
  seen_time INTEGER NOT NULL,    -- stamp of the link row it removed
  seen_origin INTEGER NOT NULL,
  vector BLOB,                   -- last link of a file: the contents it saw; NULL: not the last
  time INTEGER NOT NULL,
  origin INTEGER NOT NULL
);
CREATE INDEX tombstone_stamp ON tombstone(origin, time);

-- Content rows: one slot for each node that ever wrote the file.
CREATE TABLE content(
  inode INTEGER NOT NULL,
  writer INTEGER NOT NULL,       -- origin of the stamp
  time INTEGER NOT NULL,
  size INTEGER NOT NULL,
  root BLOB,                     -- ContentRef: a tree, or
  inline BLOB,                   --   the bytes themselves, or neither: a hole
  shift INTEGER NOT NULL,
  stored INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL,
  vector BLOB NOT NULL,          -- what it replaced, of other writers
  dot_time INTEGER NOT NULL,     -- stamp under which this content was first written
  dot_origin INTEGER NOT NULL,
  PRIMARY KEY(inode, writer)
);
CREATE INDEX content_stamp ON content(writer, time);

-- Attribute rows. `field` is a number of rows.Field, or the name of an extended attribute (BLOB).
CREATE TABLE attribute(
  inode INTEGER NOT NULL,
  field NOT NULL,
  value,                         -- NULL: an extended attribute that was removed
  time INTEGER NOT NULL,
  origin INTEGER NOT NULL,
  PRIMARY KEY(inode, field)
) WITHOUT ROWID;
CREATE INDEX attribute_stamp ON attribute(origin, time);

-- Derived, and empty in a tree without conflicts:

-- Directories shown as one: member -> representative (which is not listed itself).
CREATE TABLE merged(member INTEGER PRIMARY KEY, representative INTEGER NOT NULL);

-- Directories whose link row would close a cycle: where they are instead.
CREATE TABLE broken(inode INTEGER PRIMARY KEY, parent INTEGER NOT NULL);

-- Contents nobody replaced and that are not the file's own: shown beside it as read-only twins
-- until somebody works on the file, which makes them files of the same inode number.
CREATE TABLE copy(
  inode INTEGER PRIMARY KEY,     -- made from the file's inode and the content's first stamp
  original INTEGER NOT NULL,     -- inode of the file
  writer INTEGER NOT NULL,       -- slot of the content
  directory INTEGER NOT NULL,    -- where the file is shown
  name BLOB NOT NULL,            -- under which name
  time INTEGER NOT NULL,         -- stamp of the content
  origin INTEGER NOT NULL
);
CREATE INDEX copy_original ON copy(original);
CREATE INDEX copy_directory ON copy(directory);

-- Made-up names: of links with role 3 and of copies.
CREATE TABLE alias(
  directory INTEGER NOT NULL,
  name BLOB NOT NULL,
  link INTEGER NOT NULL,         -- of a copy: its inode
  inode INTEGER NOT NULL,
  is_copy INTEGER NOT NULL,
  PRIMARY KEY(directory, name)
) WITHOUT ROWID;
CREATE INDEX alias_link ON alias(link);

-- This node alone: inodes without a link that are still open here.
CREATE TABLE orphan(
  inode INTEGER PRIMARY KEY,
  private BLOB                   -- attributes and content since the last link went; NULL: unchanged
);
