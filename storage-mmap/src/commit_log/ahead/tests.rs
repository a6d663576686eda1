use crate::commit_log::room::RoomRules;
use crate::commit_log::segment::DIRECTORY;
use crate::files::memory::{FaultEffect, FaultTarget, FileCall};
use crate::files::{FileLayer, MemoryFiles, OpenMode};
use crate::settings::MmapSettings;

use super::*;

const SEGMENT_BYTES: u64 = 64 << 20;
/// A frame of a few messages.
const FRAME_BYTES: u64 = 1000;

/// A writer of frames that does nothing but move on.
struct Line {
    files: MemoryFiles,
    room: Arc<Room>,
    ahead: Ahead,
    used: u64,
}

impl Line {
    fn new() -> Self {
        let files = MemoryFiles::new();
        files.create_directory(DIRECTORY).unwrap();
        let settings = MmapSettings { segment_bytes: SEGMENT_BYTES, disk_full_percent: 100, ..MmapSettings::default() };
        let layer: Arc<dyn FileLayer> = Arc::new(files.clone());
        let file = layer.open(&format!("{DIRECTORY}/{:020}", 0), OpenMode::Create).unwrap();
        let room = Arc::new(Room::new(layer, RoomRules::new(&settings), 0, file, 0));
        let ahead = Ahead::new(Arc::clone(&room), settings.prepare_bytes);
        Self { files, room, ahead, used: 0 }
    }

    fn write(&mut self, bytes: u64, expects_sync: bool) {
        self.room.claim(self.used, self.used + bytes).unwrap();
        self.used += bytes;
        self.room.use_to(self.used);
        self.ahead.moved_on(bytes, expects_sync);
    }

    fn write_durably(&mut self, bytes: u64) {
        self.write(bytes, true);
        self.ahead.synced();
    }

    /// Does what there is to do; says whether room was settled.
    fn prepare(&self) -> io::Result<bool> {
        let mut settled = false;
        while let Some(task) = self.ahead.task() {
            settled |= matches!(task, Task::Settle(_));
            self.ahead.carry_out(task)?;
        }
        Ok(settled)
    }
}

#[test]
fn room_is_settled_ahead_of_frames_that_wait_for_a_sync_each() {
    let mut line = Line::new();
    line.write_durably(FRAME_BYTES);
    assert!(line.prepare().unwrap());
    assert!(line.room.settled_lead() >= SETTLE_BYTES);
    // Not again before half of it is used up.
    while line.room.settled_lead() >= SETTLE_BYTES / 2 {
        assert!(!line.prepare().unwrap());
        line.write_durably(FRAME_BYTES);
    }
    assert!(line.prepare().unwrap());
    assert!(line.room.settled_lead() >= SETTLE_BYTES);
}

#[test]
fn nothing_is_settled_for_frames_that_wait_for_nothing() {
    let mut line = Line::new();
    for _ in 0..100 {
        line.write(FRAME_BYTES, false);
    }
    line.ahead.synced();
    assert!(!line.prepare().unwrap());
    assert_eq!(line.room.settled_lead(), 0);
}

#[test]
fn a_writer_that_outruns_it_is_left_alone_for_a_while() {
    let mut line = Line::new();
    line.write_durably(FRAME_BYTES);
    assert!(line.prepare().unwrap());
    line.write_durably(2 * SETTLE_BYTES);
    let outrun_at = line.used;
    while line.used < outrun_at + SETTLE_REST_BYTES {
        assert!(!line.prepare().unwrap());
        line.write_durably(100 * FRAME_BYTES);
    }
    assert!(line.prepare().unwrap());
}

#[test]
fn nothing_is_settled_beyond_the_segment() {
    let mut line = Line::new();
    line.write_durably(SEGMENT_BYTES - SETTLE_BYTES / 2);
    assert!(!line.prepare().unwrap());
}

#[test]
fn a_sync_that_fails_is_told() {
    let mut line = Line::new();
    line.write_durably(FRAME_BYTES);
    line.files.fail(FaultTarget::Every(FileCall::SyncData), FaultEffect::Fail(io::ErrorKind::Other));
    line.prepare().unwrap_err();
    assert_eq!(line.room.settled_lead(), 0);
}

#[test]
fn room_that_cannot_be_had_is_left_to_the_writer() {
    let mut line = Line::new();
    line.write_durably(FRAME_BYTES);
    line.files.remove(&line.room.path()).unwrap();
    assert!(line.prepare().unwrap(), "it was tried, once");
    assert_eq!(line.room.settled_lead(), 0);
    assert!(!line.prepare().unwrap());
}
