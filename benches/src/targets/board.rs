//! All targets with their latest rows: what was not measured in this run keeps its rows and their date.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use comfy_table::{Cell, CellAlignment};
use serde::{Deserialize, Serialize};

use super::plot;
use super::row::{Row, command};
use crate::limits::{GroupLimits, facts};
use crate::machine::Machine;
use crate::neighbours::NOISY_SHARE;
use crate::page::{PEERS_FILE, Part, escape, publish};
use crate::{Result, table};

/// How the ninth target, embedded peers, is measured: in a crate of its own, which ordinary builds never compile.
pub const PEERS: &str = "cargo bench --manifest-path benches/peers/Cargo.toml";

/// The rows of one target, and when they were measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// What it is about.
    pub title: String,
    /// `quick` or `full`.
    pub profile: String,
    /// When the run began.
    pub measured_at: String,
    /// The share of the cores that others used meanwhile; `None` when the system does not tell.
    pub neighbours: Option<f64>,
    /// In the order in which they were measured.
    pub rows: Vec<Row>,
}

/// All targets that were measured, in this run or before.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Board {
    /// Where the latest run was made.
    pub machine: Machine,
    /// What that machine can do at best, by body size.
    pub limits: GroupLimits,
    /// When the latest run began.
    pub latest: String,
    /// By number.
    pub targets: BTreeMap<u8, Measurement>,
}

impl Board {
    /// The board of a run, with what earlier runs left in a directory.
    #[must_use]
    pub fn new(machine: Machine, limits: GroupLimits, latest: String, directory: &Path) -> Self {
        // What cannot be read was left by another version, and is measured again sooner or later.
        let earlier = fs::read(directory.join(Part::Targets.file("json"))).ok();
        let earlier = earlier.and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        Self { machine, limits, latest, targets: earlier.map_or_else(BTreeMap::new, |board| board.targets) }
    }

    /// Takes the rows of one target in, in place of earlier ones.
    pub fn take(&mut self, number: u8, title: &str, profile: &str, neighbours: Option<f64>, rows: Vec<Row>) {
        let (title, profile, measured_at) = (title.to_owned(), profile.to_owned(), self.latest.clone());
        self.targets.insert(number, Measurement { title, profile, measured_at, neighbours, rows });
    }

    /// Writes the board and refreshes the report; returns the report's page.
    ///
    /// # Errors
    /// When a file cannot be written or a plot not drawn.
    pub fn write(&self, directory: &Path) -> Result<PathBuf> {
        publish(directory, Part::Targets, &self.html()?, self)
    }

    /// What a reader has to know of the machine.
    #[must_use]
    pub fn facts(&self) -> Vec<(String, String)> {
        let mut all = self.machine.facts();
        all.extend(facts(&self.limits));
        all
    }

    fn html(&self) -> Result<String> {
        let mut out = format!("<h1>CueMQ targets, {}</h1>", escape(&self.latest));
        if self.machine.volatile {
            out.push_str(crate::page::TMPFS_WARNING);
        }
        out.push_str("<table>");
        for (name, value) in self.facts() {
            write!(out, "<tr><td>{}</td><td>{}</td></tr>", escape(&name), escape(&value))?;
        }
        out.push_str("</table>");
        for (number, target) in &self.targets {
            let Measurement { title, profile, measured_at, neighbours, rows } = target;
            write!(out, "<h2>{number}. {}</h2><p>{} profile, {measured_at}", escape(title), escape(profile))?;
            if *measured_at != self.latest {
                out.push_str(", <b>an earlier run</b>");
            }
            write!(out, "; {}; <code>{}</code></p>", busy(*neighbours), command(*number))?;
            for svg in plot::by_unit(rows)? {
                out.push_str(&svg);
            }
            write_rows(&mut out, rows)?;
        }
        write!(
            out,
            "<h2>9. embedded peers</h2><p>A crate of its own measures them and leaves {PEERS_FILE} here: <code>{PEERS}</code></p>"
        )?;
        Ok(out)
    }
}

fn write_rows(out: &mut String, rows: &[Row]) -> Result<()> {
    out.push_str("<table><tr><th>name</th><th>value</th><th>limit</th><th>ratio min</th><th>median</th><th>max</th>");
    out.push_str("<th>target</th><th>met</th><th>flush</th><th>pairs</th><th>verified</th><th>note</th></tr>");
    for row in rows {
        let ratio = row.ratio;
        write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{} = {}</td><td>{:.3}</td><td><b>{:.3}</b></td><td>{:.3}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"note\">{}</td></tr>",
            escape(&row.name),
            row.show(row.value),
            escape(&row.limit_name),
            row.show(row.limit),
            ratio.min,
            ratio.median,
            ratio.max,
            escape(&row.target.to_string()),
            met(row),
            escape(&row.flush),
            row.pairs.len(),
            row.verified,
            escape(&row.note),
        )?;
    }
    out.push_str("</table>");
    Ok(())
}

/// What others did meanwhile, with a warning if it was much.
#[must_use]
pub fn busy(neighbours: Option<f64>) -> String {
    match neighbours {
        Some(share) if share > NOISY_SHARE => {
            format!("others used {:.0} % of the cores: TOO NOISY TO QUOTE", share * 100.0)
        }
        Some(share) => format!("others used {:.0} % of the cores", share * 100.0),
        None => "what others did is not known".to_owned(),
    }
}

fn met(row: &Row) -> &'static str {
    match row.met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "-",
    }
}

/// The rows of this run as a table for a terminal. What earlier runs left is named below it.
#[must_use]
pub fn text(board: &Board) -> String {
    let mut text = format!("\ntargets, {}\n", board.latest);
    for (name, value) in board.facts() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name}: {value}");
    }
    if board.machine.volatile {
        text.push_str("WARNING: the stores lie on tmpfs, which keeps nothing: the durable figures mean nothing\n");
    }
    let (now, earlier): (Vec<_>, Vec<_>) =
        board.targets.iter().partition(|(_, target)| target.measured_at == board.latest);
    let mut table = table::new_table();
    table.set_header(["#", "name", "flush", "value", "limit", "ratio min / med / max", "target", "met"]);
    for row in now.iter().flat_map(|(_, target)| &target.rows) {
        table.add_row(cells(row));
    }
    let _ = writeln!(text, "{table}");
    let judged = || now.iter().flat_map(|(_, target)| &target.rows).filter_map(|row| row.met);
    let _ =
        writeln!(text, "{} of {} rows with a target reach it", judged().filter(|met| *met).count(), judged().count());
    for (number, target) in now.iter().filter(|(_, target)| target.neighbours.is_some_and(|share| share > NOISY_SHARE))
    {
        let _ = writeln!(text, "WARNING: target {number} ({}): {}", target.title, busy(target.neighbours));
    }
    for (number, target) in earlier {
        let _ = writeln!(text, "target {number} ({}) was last measured {}", target.title, target.measured_at);
    }
    let _ = writeln!(text, "target 9 (embedded peers): {PEERS}");
    text
}

fn cells(row: &Row) -> Vec<Cell> {
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let ratio = row.ratio;
    vec![
        right(row.number.to_string()),
        Cell::new(&row.name),
        Cell::new(&row.flush),
        right(row.show(row.value)),
        right(format!("{} {}", row.limit_name, row.show(row.limit))),
        right(format!("{:.3} / {:.3} / {:.3}", ratio.min, ratio.median, ratio.max)),
        right(row.target.to_string()),
        Cell::new(met(row)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::sample as machine;
    use crate::targets::row::{Goal, Pair, Subject};

    fn row(number: u8, ratio: f64) -> Row {
        Subject {
            number,
            name: format!("path <{number}>"),
            unit: "msg/s",
            flush: "buffered",
            limit: "LIMIT",
            goal: Goal::AtLeast(0.5),
            note: String::new(),
        }
        .row(vec![Pair { value: ratio * 1e6, limit: 1e6 }], 9)
    }

    #[test]
    fn what_was_not_measured_again_stays_with_its_date() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = Board::new(machine(), GroupLimits::new(), "first run".into(), directory.path());
        first.take(1, "one", "quick", Some(0.0), vec![row(1, 0.6)]);
        first.take(2, "two", "quick", None, vec![row(2, 0.4)]);
        first.write(directory.path()).unwrap();
        let mut second = Board::new(machine(), GroupLimits::new(), "second run".into(), directory.path());
        second.take(2, "two", "full", Some(0.5), vec![row(2, 0.7)]);
        let page = second.write(directory.path()).unwrap();
        assert_eq!(second.targets[&1].measured_at, "first run");
        assert_eq!(second.targets[&2].rows, [row(2, 0.7)]);
        let shown = text(&second);
        assert!(shown.contains("1 of 1 rows with a target reach it"), "{shown}");
        assert!(shown.contains("WARNING: target 2 (two): others used 50 %"), "{shown}");
        assert!(shown.contains("target 1 (one) was last measured first run"), "{shown}");
        let html = fs::read_to_string(page).unwrap();
        assert!(html.contains("first run, <b>an earlier run</b>") && html.contains("path &lt;2&gt;"));
        assert_eq!(html.matches("<svg").count(), 2, "a plot per target");
        let summary: serde_json::Value =
            serde_json::from_slice(&fs::read(directory.path().join("summary.json")).unwrap()).unwrap();
        let row = &summary["targets"]["targets"]["2"]["rows"][0];
        for field in ["name", "value", "unit", "ratio", "target", "met", "flush", "verified", "command"] {
            assert!(!row[field].is_null(), "{field}");
        }
    }

    #[test]
    fn a_board_of_another_version_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(Part::Targets.file("json")), b"{\"rows\":[]}").unwrap();
        assert!(Board::new(machine(), GroupLimits::new(), "now".into(), directory.path()).targets.is_empty());
    }
}
