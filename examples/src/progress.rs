//! How far a program is: a bar on a terminal, a few plain lines elsewhere. Both go to standard error.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::table::count;

/// Plain lines that the whole way is divided into.
const PLAIN_LINES: u64 = 4;

/// A way of known length.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: u64,
    bar: Option<ProgressBar>,
    /// How many of the plain lines were printed.
    told: u64,
}

impl Progress {
    /// Begins a way of `total` steps.
    #[must_use]
    pub fn new(what: &'static str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {elapsed_precise}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style).with_message(what)
        });
        Self { what, total, bar, told: 0 }
    }

    /// Tells that `done` steps lie behind.
    pub fn at(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let reached = (done * PLAIN_LINES).checked_div(self.total).unwrap_or(0);
        if reached > self.told {
            self.told = reached;
            eprintln!("{} {} of {}", self.what, count(done), count(self.total));
        }
    }

    /// Ends it and leaves the terminal to others.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish();
        }
    }
}
