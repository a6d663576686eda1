//! The report as text for a terminal.

use std::fmt::Write;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use cuemq_benches::table::{bytes, short};

use crate::contender::Contender;
use crate::report::{Participant, Report, Row, Spread};

/// All rows, how many comparisons CueMQ wins, and on which terms everybody took part.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut text = head(report);
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    let ours = Contender::OURS.map(|ours| format!("{ours} : peer"));
    let columns = ["path", "body", "batch", "contender", "messages/s (min .. max)"].map(str::to_owned);
    table.set_header(columns.into_iter().chain(ours).chain(["ahead".to_owned()]));
    for row in &report.rows {
        table.add_row(cells(row));
    }
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{table}");
    for ours in Contender::OURS {
        let _ = writeln!(text, "{}", score(report, ours));
    }
    for participant in &report.contenders {
        text.push_str(&terms(participant));
    }
    text
}

fn head(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "\n{} profile, medians of {} rounds in which all took turns; {} cores, {}, {} MiB, Linux {}; {} on {}\n\
         {} messages were read back, in order, with their checksums\n",
        report.profile,
        report.rounds,
        machine.cores,
        machine.processor,
        machine.memory_bytes >> 20,
        machine.kernel,
        machine.directory,
        machine.file_system,
        report.checked,
    );
    for limits in &report.limits {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{}: LIMIT {}/s, SYNC {:.1} us, PING {:.1} us",
            bytes(limits.body_bytes),
            short(limits.encode_per_second),
            limits.sync.p50_us,
            limits.ping.p50_us
        );
    }
    if machine.volatile {
        text.push_str("WARNING: the stores lie on tmpfs, which keeps nothing: the durable figures mean nothing\n");
    }
    text
}

fn cells(row: &Row) -> Vec<Cell> {
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let Spread { min, median, max } = row.rate;
    let mut cells = vec![
        Cell::new(row.path),
        right(bytes(row.body_bytes)),
        right(row.batch.to_string()),
        Cell::new(row.contender),
        right(format!("{} ({} .. {})", short(median), short(min), short(max))),
    ];
    let factor = |ours: Contender| row.factors.get(ours.name()).map_or_else(String::new, factors);
    cells.extend(Contender::OURS.map(|ours| right(factor(ours))));
    let verdicts: Vec<_> = Contender::OURS.into_iter().filter_map(|ours| row.ahead(ours)).map(yes_or_no).collect();
    cells.push(Cell::new(verdicts.join(" / ")));
    cells
}

fn factors(factor: &Spread) -> String {
    format!("{:.2} ({:.2} .. {:.2})", factor.median, factor.min, factor.max)
}

fn yes_or_no(ahead: bool) -> &'static str {
    if ahead { "yes" } else { "NO" }
}

/// `CueMQ broker: ahead in 30 of 32; behind commitlog in append buffered of 256 B by 1 (0.50)`.
fn score(report: &Report, ours: Contender) -> String {
    let compared: Vec<_> = report.rows.iter().filter_map(|row| Some((row, row.ahead(ours)?))).collect();
    let behind: Vec<_> = compared.iter().filter(|(_, ahead)| !ahead).map(|(row, _)| row).collect();
    let mut text = format!("{ours}: ahead in {} of {}", compared.len() - behind.len(), compared.len());
    for row in behind {
        let factor = row.factors[ours.name()].median;
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n  behind {} in {} of {} by {}: {factor:.2}",
            row.contender,
            row.path,
            bytes(row.body_bytes),
            row.batch
        );
    }
    text
}

fn terms(participant: &Participant) -> String {
    let Participant { name, package, version, terms } = participant;
    format!(
        "\n{name} ({package} {version})\n  buffered: {}\n  durable: {}\n  fetch: {}\n  leaves out: {}\n",
        terms.buffered, terms.durable, terms.fetch, terms.leaves_out
    )
}
