"""What was granted for certain bytes ends when others are written: suid, sgid, file capabilities.

For writes through the page cache the kernel sees to it: it asks for `CAPABILITY` before every one
of them, and changes the mode itself. Writes that bypass the page cache are left to us.
Sync. What an open file is known to lack is kept in `OpenFile` until its attributes change.
"""

from dfsfs.base.errors import NoAttribute
from dfsfs.namespace import AttributeChanges, Namespace
from dfsfs.vfs.attributes import SUID_SGID, without_privileges
from dfsfs.vfs.handles import FileHandle, OpenFile
from dfsfs.vfs.kernel import KernelView

CAPABILITY = b"security.capability"


def drop_privileges(namespace: Namespace, kernel: KernelView, handle: FileHandle) -> None:
    """A handle is written through, past the page cache."""
    file = handle.file
    file.privileged = False
    mode = namespace.get(file.inode).mode
    if not handle.root and mode & SUID_SGID and without_privileges(mode) != mode:
        namespace.set_attributes(file.inode, AttributeChanges(mode=without_privileges(mode)))
        kernel.attributes_changed(file.inode)
    try:
        namespace.get_xattr(file.inode, CAPABILITY)
    except NoAttribute:
        return
    namespace.remove_xattr(file.inode, CAPABILITY)


def open_capability(namespace: Namespace, file: OpenFile) -> bytes:
    """The capabilities of a file that is open; hardly one has any.

    Raises:
        NoAttribute: it has none.
    """
    if not file.capable:
        raise NoAttribute("no capabilities")
    try:
        return namespace.get_xattr(file.inode, CAPABILITY)
    except NoAttribute:
        file.capable = False
        raise
