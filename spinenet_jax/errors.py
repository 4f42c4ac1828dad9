"""The errors that scripts print as one line: a user's mistake, and a broken world."""

import errno

# What the world may do to any file operation, and what there is to do about it.
WORLD = {
    errno.ENOSPC: 'make room',
    errno.EDQUOT: 'make room in your quota',
    errno.EACCES: 'give this user the right, or use another folder',
    errno.EPERM: 'give this user the right, or use another folder',
    errno.EROFS: 'use a folder that can be written',
    errno.EISDIR: 'a folder is where a file should be: move it away',
    errno.ENOTDIR: 'a file is where a folder should be: move it away',
    errno.EEXIST: 'a file is where a folder should be: move it away',
    errno.ENOTEMPTY: 'a folder is where a file should be: move it away',
    errno.ENOENT: 'it was there before, or a folder above it is missing',
    errno.ENAMETOOLONG: 'use a shorter name',
    errno.ELOOP: 'links lead in a circle there',
    errno.EIO: 'look after the disk',
    errno.ESTALE: 'the network file system lost it: mount it again',
    errno.EMFILE: 'raise the limit of open files (ulimit -n)',
    errno.ENFILE: 'too many files are open on this machine',
    errno.ETXTBSY: 'another program uses it',
    errno.ETIMEDOUT: 'the file system did not answer in time',
}


class UserError(ValueError):
    """Input that cannot be used: scripts print its message as one line and exit with status 2."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is JAX's: what a program needs does not fit the device."""
    return isinstance(error, RuntimeError) and 'RESOURCE_EXHAUSTED' in str(error)


class RunError(RuntimeError):
    """What ends a run that no setting is to blame for: a full disk, a lost host, a loss of NaN.

    Scripts print its message as one line and exit with status 1.
    """
