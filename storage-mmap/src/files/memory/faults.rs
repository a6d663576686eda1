//! Failures on request.

use std::io;

/// A kind of call on the file layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileCall {
    /// `create_directory`
    CreateDirectory,
    /// `list`
    List,
    /// `open`
    Open,
    /// `rename`
    Rename,
    /// `remove` and `remove_directory`
    Remove,
    /// `sync_directory`
    SyncDirectory,
    /// `lock`
    Lock,
    /// `disk_space`
    DiskSpace,
    /// `len`
    Len,
    /// `read_at`
    Read,
    /// `write_at`
    Write,
    /// `allocate`
    Allocate,
    /// `set_len`
    SetLen,
    /// `sync_data`
    SyncData,
    /// `map`
    Map,
}

/// Which calls a fault hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultTarget {
    /// The `n`-th call of any kind from now on, counted from 1.
    NthCall(u64),
    /// The `n`-th call of one kind from now on, counted from 1.
    Nth(FileCall, u64),
    /// Every call of one kind, until [`clear_faults`](super::MemoryFiles::clear_faults).
    Every(FileCall),
}

/// What happens instead of the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultEffect {
    /// The call changes nothing and fails. A failed `sync_data` loses what was not synced, as Linux does: a later sync
    /// succeeds without it, while readers still see it until the cache is dropped.
    Fail(io::ErrorKind),
    /// A write lands this many bytes and fails; any other call fails as with `Fail`.
    ShortWrite(usize, io::ErrorKind),
    /// The call does nothing and reports success: a disk that lies. Only for `sync_data` and `sync_directory`.
    Pretend,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    target: FaultTarget,
    effect: FaultEffect,
    calls_met: u64,
}

/// Most faults armed at a time.
const MAX_FAULTS: usize = 64;

/// The armed faults, asked before each call.
#[derive(Debug, Default)]
pub(super) struct Faults {
    armed: Vec<Fault>,
    calls: u64,
}

impl Faults {
    pub(super) fn calls(&self) -> u64 {
        self.calls
    }

    pub(super) fn arm(&mut self, target: FaultTarget, effect: FaultEffect) {
        assert!(self.armed.len() < MAX_FAULTS, "more than {MAX_FAULTS} faults: clear some");
        self.armed.push(Fault { target, effect, calls_met: 0 });
    }

    pub(super) fn clear(&mut self) {
        self.armed.clear();
    }

    /// Counts a call and says what hits it; a fault for one call is spent with it.
    pub(super) fn meet(&mut self, call: FileCall) -> Option<FaultEffect> {
        self.calls += 1;
        let mut effect = None;
        self.armed.retain_mut(|fault| {
            let (is_hit, is_spent) = match fault.target {
                FaultTarget::Every(kind) => (kind == call, false),
                FaultTarget::Nth(kind, _) if kind != call => (false, false),
                FaultTarget::Nth(_, nth) | FaultTarget::NthCall(nth) => {
                    fault.calls_met += 1;
                    (fault.calls_met == nth, fault.calls_met >= nth)
                }
            };
            if is_hit {
                effect.get_or_insert(fault.effect);
            }
            !is_spent
        });
        effect
    }
}

/// The error that an injected fault shows.
pub(super) fn injected(kind: io::ErrorKind, call: FileCall, path: &str) -> io::Error {
    io::Error::new(kind, format!("injected {kind} in {call:?} of {path:?}"))
}
