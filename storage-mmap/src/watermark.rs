//! `watermark`: a witness, outside the log, of how much of the log was once surely on disk.
//!
//! Without it the newest synced batches have no witness: damage to them would look like the torn end that a power cut
//! leaves. The file is one sector, written in place, and only ever behind the truth; a lost or old one weakens the
//! evidence and does no harm.

use std::io;

use crate::cursor::Cursor;
use crate::files::{FileLayer, OpenMode};
use crate::manifest::read_whole;

/// The file's name.
pub(crate) const PATH: &str = "watermark";
const MAGIC: &[u8; 4] = b"CqWm";
const VERSION: u32 = 1;
const BYTES: usize = 20;

/// Writes that the log is on disk up to `durable`. Call it only after the sync that made it so.
pub(crate) fn write(files: &dyn FileLayer, durable: u64) -> io::Result<()> {
    let mut out = [0; BYTES];
    out[0..4].copy_from_slice(MAGIC);
    out[4..8].copy_from_slice(&VERSION.to_le_bytes());
    out[8..16].copy_from_slice(&durable.to_le_bytes());
    let crc = crc32c::crc32c(&out[..16]);
    out[16..20].copy_from_slice(&crc.to_le_bytes());
    let file = files.open(PATH, OpenMode::Create)?;
    file.write_at(0, &[&out])?;
    file.sync_data()
}

/// Up to where the file vouches for the log; 0 if it does not exist or is not whole.
pub(crate) fn read(files: &dyn FileLayer) -> io::Result<u64> {
    match read_whole(files, PATH) {
        Ok(bytes) => Ok(decode(&bytes).unwrap_or(0)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let mut cursor = Cursor::new(bytes);
    let known = cursor.bytes(4)? == MAGIC && cursor.u32()? == VERSION;
    let durable = cursor.u64()?;
    (known && cursor.u32()? == crc32c::crc32c(&bytes[..16])).then_some(durable)
}
