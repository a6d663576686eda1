//! How full the disk is.

use std::fmt::Debug;
use std::io;
use std::path::PathBuf;

/// How much of a disk may be used, and what is free of that, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Room {
    pub(crate) total: u64,
    pub(crate) free: u64,
}

impl Room {
    /// Bytes in use beyond a share of the disk.
    pub(crate) fn over(&self, percent: u8) -> u64 {
        let allowed = u128::from(self.total) * u128::from(percent.min(100)) / 100;
        let used = self.total.saturating_sub(self.free);
        u64::try_from(u128::from(used).saturating_sub(allowed)).unwrap_or(u64::MAX)
    }
}

/// Something that knows how full the disk is.
pub(crate) trait DiskSpace: Debug + Send + Sync + 'static {
    /// Asks the operating system.
    fn room(&self) -> io::Result<Room>;
}

/// The file system that holds a directory.
#[derive(Debug)]
pub(crate) struct FileSystem(pub(crate) PathBuf);

impl DiskSpace for FileSystem {
    fn room(&self) -> io::Result<Room> {
        let stat = rustix::fs::statvfs(&self.0)?;
        // What only root may use is neither in use nor free, as with df: a disk that holds much of it back would be full
        // for ever.
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        let bytes = |blocks: u64| stat.f_frsize.saturating_mul(blocks);
        Ok(Room { total: bytes(used.saturating_add(stat.f_bavail)), free: bytes(stat.f_bavail) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_disk() {
        let room = Room { total: 1_000, free: 100 };
        assert_eq!((room.over(85), room.over(90), room.over(100)), (50, 0, 0));
        let real = FileSystem(std::env::temp_dir()).room().unwrap();
        assert!(real.total >= real.free && real.total > 0);
    }
}
