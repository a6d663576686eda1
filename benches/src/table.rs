//! The report as tables for a terminal.

use std::fmt::Write;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

use crate::limits::facts;
use crate::report::{Figure, Report, Row};
use crate::store::EngineKind;

/// All rows in one table, then what the actors leave of the raw engines' rates.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut text = machine(report);
    let mut table = new_table();
    let engines = EngineKind::ALL.map(EngineKind::name);
    let head = ["path", "body", "parameter"].into_iter().chain(engines);
    table.set_header(head.chain(["winner", "mmap : lsm", "limit", "of limit"]));
    for row in &report.rows {
        table.add_row(cells(row));
    }
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{table}");
    if !report.actors.is_empty() {
        let _ = writeln!(
            text,
            "\nthrough the actors, as a share of the raw engine with the same batches:\n{}",
            actors(report)
        );
    }
    text
}

/// A table with lines, as wide as it needs to be.
pub(crate) fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn machine(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!("\n{} profile\n{}\n", report.profile, report.settings);
    for (name, value) in machine.facts().into_iter().chain(facts(&report.limits)) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name}: {value}");
    }
    text.push_str("Limits were measured before each group. A percentage is the change of speed against the baseline, ");
    text.push_str("which is the run before unless another one was named.\n");
    if machine.volatile {
        text.push_str("WARNING: the stores lie on tmpfs, which keeps nothing: the durable figures mean nothing\n");
    }
    text
}

fn cells(row: &Row) -> Vec<Cell> {
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let mut cells = vec![
        Cell::new(row.path),
        right(bytes(row.body_bytes)),
        right(format!("{} {}", row.parameter_name, row.parameter)),
    ];
    let figure = |engine: EngineKind| row.figures.get(engine.name());
    cells.extend(EngineKind::ALL.map(|engine| right(figure(engine).map_or_else(dash, |f| value(row, f)))));
    cells.push(Cell::new(row.winner.unwrap_or("-")));
    cells.push(right(row.mmap_to_lsm.map_or_else(dash, |factor| format!("{factor:.2}"))));
    cells.push(right(match (row.limit_name, row.limit) {
        (Some(name), Some(limit)) => format!("{name}\n{}/s", short(limit)),
        _ => dash(),
    }));
    let durable = [EngineKind::Mmap, EngineKind::Lsm];
    let shares = durable.map(|engine| {
        let share = figure(engine).and_then(|figure| figure.of_limit);
        share.map_or_else(dash, |share| format!("{engine} {share:.3}"))
    });
    cells.push(right(shares.join("\n")));
    cells
}

fn dash() -> String {
    "-".into()
}

/// A figure with everything that belongs to it, on two lines: `1.23 M/s`, `315 MB/s +3 %`.
fn value(row: &Row, figure: &Figure) -> String {
    let mut text = match figure.megabytes_per_second {
        Some(megabytes) => format!("{}/s\n{megabytes:.1} MB/s", short(figure.value)),
        None => format!("{:.2} {}\n", figure.value, row.unit),
    };
    if let Some(change) = figure.change {
        let _ = write!(text, " {:+.0} %", change * 100.0);
    }
    text
}

/// A count with three digits and its thousands as a letter: `1.23 M`.
#[must_use]
pub fn short(count: f64) -> String {
    let (scaled, letter) = match count {
        c if c >= 1e9 => (c / 1e9, " G"),
        c if c >= 1e6 => (c / 1e6, " M"),
        c if c >= 1e3 => (c / 1e3, " k"),
        c => (c, ""),
    };
    let digits = if scaled >= 100.0 {
        0
    } else if scaled >= 10.0 {
        1
    } else {
        2
    };
    format!("{scaled:.digits$}{letter}")
}

/// A size: `256 B`, `16 KiB`.
#[must_use]
pub fn bytes(bytes: usize) -> String {
    if bytes >= 1024 && bytes.is_multiple_of(1024) { format!("{} KiB", bytes / 1024) } else { format!("{bytes} B") }
}

fn actors(report: &Report) -> Table {
    let mut table = new_table();
    table.set_header(["engine", "body", "batch", "actors : raw"]);
    for actor in &report.actors {
        let share = format!("{:.2}", actor.share);
        table.add_row([actor.engine.to_owned(), bytes(actor.body_bytes), actor.batch.to_string(), share]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_sizes_are_short() {
        assert_eq!(short(1_234_567.0), "1.23 M");
        assert_eq!(short(23_456.0), "23.5 k");
        assert_eq!(short(456_789.0), "457 k");
        assert_eq!(short(7.0), "7.00");
        assert_eq!(bytes(256), "256 B");
        assert_eq!(bytes(16 << 10), "16 KiB");
        assert_eq!(bytes(1500), "1500 B");
    }
}
