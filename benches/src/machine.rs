//! What a run was measured on.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;

/// The machine and the file system, as the report names them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// The processor's own name.
    pub processor: String,
    /// Main memory in bytes; 0 when the system does not tell.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Where the stores lie.
    pub directory: String,
    /// The file system of that directory.
    pub file_system: String,
    /// Whether that file system keeps nothing: then no durable figure means anything.
    pub volatile: bool,
}

/// Magic numbers of `statfs(2)`.
const FILE_SYSTEMS: [(u64, &str); 8] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (TMPFS, "tmpfs"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0x794c_7630, "overlayfs"),
    (0x6969, "nfs"),
];
const TMPFS: u64 = 0x0102_1994;

impl Machine {
    /// Asks the system. `directory` is where the stores lie.
    ///
    /// # Errors
    /// When the directory's file system cannot be asked.
    pub fn ask(directory: &Path) -> Result<Self> {
        let magic = u64::try_from(rustix::fs::statfs(directory)?.f_type)?;
        let name = FILE_SYSTEMS.iter().find(|(known, _)| *known == magic).map(|(_, name)| (*name).to_owned());
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let kibibytes = field(&read("/proc/meminfo"), "MemTotal").and_then(|text| number(&text));
        Ok(Self {
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
            memory_bytes: kibibytes.unwrap_or(0) * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            directory: directory.display().to_string(),
            file_system: name.unwrap_or_else(|| format!("unknown (magic {magic:#x})")),
            volatile: magic == TMPFS,
        })
    }

    /// What a report says of it: a name, and its value.
    #[must_use]
    pub fn facts(&self) -> Vec<(String, String)> {
        let memory = self.memory_bytes >> 20;
        let facts = [
            ("machine", format!("{} cores, {}, {memory} MiB", self.cores, self.processor)),
            ("kernel", format!("Linux {}", self.kernel)),
            ("stores", format!("{} on {}", self.directory, self.file_system)),
        ];
        facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// The value behind `name:` in a file of the proc file system.
fn field(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned()).next()
}

fn number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Machine {
        Machine {
            cores: 2,
            processor: "a <processor>".into(),
            memory_bytes: 8 << 30,
            kernel: "6".into(),
            directory: "/somewhere".into(),
            file_system: "ext4".into(),
            volatile: false,
        }
    }

    #[test]
    fn the_machine_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let machine = Machine::ask(directory.path()).unwrap();
        assert!(machine.cores > 0);
        assert!(machine.memory_bytes > 0);
        assert!(!machine.kernel.is_empty());
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "MemTotalX: 1 kB\nMemTotal:       24 kB\n";
        assert_eq!(field(text, "MemTotal").as_deref().and_then(number), Some(24));
        assert_eq!(field(text, "Mem"), None);
    }
}
