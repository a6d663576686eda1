//! Shows a run to a person: a bar on a terminal or a line now and then, the report's lines, and the tables at the end.

use std::io::{IsTerminal, Write};

use comfy_table::{Cell, CellAlignment};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::outcome::Outcome;
use super::run::{Observer, Phase};
use super::statistics::{Latencies, Period, Tally};
use crate::table::{new_table, short};

/// Where there is no terminal, one line comes in so many seconds.
const LINE_EVERY: f64 = 5.0;
/// On a terminal, the rates beside the bar are of so many seconds.
const REFRESH_EVERY: f64 = 1.0;
/// OpenMessaging's megabyte.
const MEGABYTE: f64 = 1024.0 * 1024.0;

/// Writes to standard error, so that standard output has the tables alone.
#[derive(Debug)]
pub struct Console {
    message_size: usize,
    bar: ProgressBar,
    terminal: bool,
    phase: Phase,
    /// The age of the phase when a rate was last shown, with the messages sent and received until then.
    shown: (f64, u64, u64),
    /// Messages sent and received when they were last told.
    told: (u64, u64),
}

impl Console {
    /// For a workload's bodies of so many bytes.
    #[must_use]
    pub fn new(message_size: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        Self { message_size, bar, terminal, phase: Phase::SetUp, shown: (0.0, 0, 0), told: (0, 0) }
    }

    /// Writes a line above the bar.
    pub fn line(&self, text: &str) {
        if self.terminal {
            self.bar.println(text);
        } else {
            // Nobody can be told that standard error is closed.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }
}

impl Observer for Console {
    fn phase(&mut self, phase: Phase, seconds: Option<u64>) {
        (self.phase, self.shown) = (phase, (0.0, self.told.0, self.told.1));
        self.bar.reset();
        let (template, length) = match seconds {
            Some(seconds) => ("{prefix} [{bar:30}] {elapsed} of {len} s  {msg}", Some(seconds)),
            None => ("{prefix} {spinner} {elapsed}  {msg}", None),
        };
        self.bar.set_style(ProgressStyle::with_template(template).expect("a template that was tried"));
        self.bar.set_prefix(name(phase));
        match length {
            Some(length) => self.bar.set_length(length),
            None => self.bar.unset_length(),
        }
        let length = length.map_or_else(String::new, |seconds| format!(" ({seconds} s)"));
        self.line(&format!("----- {}{length} -----", name(phase)));
    }

    #[expect(clippy::cast_possible_truncation, reason = "an age in seconds is far below 2^53")]
    fn progress(&mut self, age: f64, sent: u64, received: u64) {
        self.bar.set_position(age as u64);
        self.told = (sent, received);
        let (then, sent_then, received_then) = self.shown;
        let since = age - then;
        if since < if self.terminal { REFRESH_EVERY } else { LINE_EVERY } {
            return;
        }
        let rate = |count: u64, before: u64| short(count.saturating_sub(before) as f64 / since);
        let text = format!("sent {} msg/s, received {} msg/s", rate(sent, sent_then), rate(received, received_then));
        if self.terminal {
            self.bar.set_message(text);
        } else {
            self.line(&format!("{} {age:.0} s: {text}", name(self.phase)));
        }
        self.shown = (age, sent, received);
    }

    fn report(&mut self, period: &Period) {
        self.line(&report_line(period, self.message_size));
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::SetUp => "set-up",
        Phase::WarmUp => "warm-up",
        Phase::BuildBacklog => "building the backlog",
        Phase::DrainBacklog => "draining the backlog",
        Phase::Test => "test",
        Phase::Verify => "verifying",
    }
}

/// A line of the report, in the manner of OpenMessaging's.
#[must_use]
pub fn report_line(period: &Period, message_size: usize) -> String {
    let rates = |count: u64| {
        let rate = period.rate(count);
        format!("{rate:.1} msg/s / {:.1} MB/s", rate * message_size as f64 / MEGABYTE)
    };
    let Tally { sent, failed, received, publish, delay, end_to_end } = &period.tally;
    format!(
        "Pub rate {} | Pub err {:.1} err/s | Cons rate {} | Backlog: {:.1} K | Pub Latency (ms) {} | Pub Delay Latency \
         (us) {} | E2E Latency (ms) {}",
        rates(*sent),
        period.rate(*failed),
        rates(*received),
        period.backlog as f64 / 1e3,
        latencies(publish, 1e3),
        latencies(delay, 1.0),
        latencies(end_to_end, 1e3),
    )
}

fn latencies(latencies: &Latencies, micros: f64) -> String {
    let at = |percent| latencies.micros_at(percent) / micros;
    format!(
        "avg: {:.3} - 50%: {:.3} - 99%: {:.3} - 99.9%: {:.3} - Max: {:.3}",
        latencies.mean_micros() / micros,
        at(50.0),
        at(99.0),
        at(99.9),
        latencies.max_micros() / micros
    )
}

/// All runs in one table, and the latencies of each in another.
#[must_use]
pub fn summary(outcomes: &[Outcome]) -> String {
    let mut runs = new_table();
    runs.set_header(["workload", "driver", "published", "consumed", "failed", "backlog", "verified", "remarks"]);
    let mut times = new_table();
    let percents = ["50 %", "75 %", "95 %", "99 %", "99.9 %", "99.99 %"];
    times.set_header(["run", "latency in ms", "avg"].into_iter().chain(percents).chain(["max"]));
    for outcome in outcomes {
        runs.add_row(rates_row(outcome));
        times.add_row(latencies_row(outcome));
    }
    format!("{runs}\n{times}")
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn rates_row(outcome: &Outcome) -> Vec<Cell> {
    let rate = |count: u64| {
        let rate = outcome.rate(count);
        let megabytes = rate * outcome.workload.message_size as f64 / MEGABYTE;
        right(format!("{} msg/s\n{megabytes:.1} MB/s", short(rate)))
    };
    let total = &outcome.total;
    vec![
        Cell::new(&outcome.workload.name),
        Cell::new(&outcome.driver),
        rate(total.sent),
        rate(total.received),
        right(total.failed.to_string()),
        right(outcome.periods.last().map_or(0, |period| period.backlog).to_string()),
        right(outcome.verified.to_string()),
        Cell::new(remarks(outcome)),
    ]
}

/// One row whose cells have a line for each kind of latency.
fn latencies_row(outcome: &Outcome) -> Vec<Cell> {
    let kinds = [&outcome.total.publish, &outcome.total.delay, &outcome.total.end_to_end];
    let lines = |micros: &dyn Fn(&Latencies) -> f64| {
        right(kinds.map(|latencies| format!("{:.3}", micros(latencies) / 1e3)).join("\n"))
    };
    let mut cells = vec![
        Cell::new(format!("{}\n{}", outcome.workload.name, outcome.driver)),
        Cell::new("publish\npublish delay\nend to end"),
        lines(&Latencies::mean_micros),
    ];
    let percents = [50.0, 75.0, 95.0, 99.0, 99.9, 99.99];
    cells.extend(percents.map(|percent| lines(&|latencies| latencies.micros_at(percent))));
    cells.push(lines(&Latencies::max_micros));
    cells
}

/// What is special about a run.
fn remarks(outcome: &Outcome) -> String {
    let mut remarks = Vec::new();
    if let Some(rate) = outcome.sustained_rate {
        remarks.push(format!("highest rate kept: {} msg/s", short(rate)));
    }
    if let Some(build) = outcome.backlog.and_then(|backlog| backlog.build_seconds()) {
        remarks.push(format!("backlog built in {build:.1} s"));
    }
    if let Some(drain) = outcome.backlog.and_then(|backlog| backlog.drain_seconds()) {
        remarks.push(format!("drained in {drain:.1} s"));
    }
    if outcome.interrupted {
        remarks.push("interrupted".into());
    }
    remarks.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_rates_errors_backlog_and_latencies() {
        let mut tally = Tally { sent: 2048, failed: 4, received: 1024, ..Tally::default() };
        tally.publish.record(1_500_000, 1);
        tally.delay.record(2_000, 1);
        let line = report_line(&Period { seconds: 2.0, tally, backlog: 1500 }, 1024);
        let expected = [
            "Pub rate 1024.0 msg/s / 1.0 MB/s",
            "Pub err 2.0 err/s",
            "Cons rate 512.0 msg/s / 0.5 MB/s",
            "Backlog: 1.5 K",
            "Pub Latency (ms) avg: 1.500 - 50%: 1.500",
            "Pub Delay Latency (us) avg: 2.000 - ",
            "E2E Latency (ms) avg: 0.000 - ",
        ];
        assert!(expected.iter().all(|part| line.contains(part)), "{line}");
    }

    #[test]
    fn every_phase_can_be_shown() {
        let mut console = Console::new(100);
        for phase in [Phase::SetUp, Phase::WarmUp, Phase::BuildBacklog, Phase::DrainBacklog, Phase::Test, Phase::Verify]
        {
            console.phase(phase, (phase == Phase::Test).then_some(3));
            console.progress(0.0, 0, 0);
            console.progress(6.0, 10, 10);
        }
    }
}
