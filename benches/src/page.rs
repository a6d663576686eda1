//! The report as one self-contained page, made of the parts that were measured.

use std::fmt::Write;
use std::fs;
use std::path::{Path as FilePath, PathBuf};

use serde::Serialize;

use crate::configuration::Path;
use crate::report::{Figure, Report, Row};
use crate::store::EngineKind;
use crate::table::{bytes, short};
use crate::{Result, limits, plot};

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:1em 0}td,th{border-bottom:1px solid #ddd;padding:.2em .7em;text-align:right}\
th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}.note{text-align:left;font-size:12px}.warning{color:#b00;font-weight:bold}";

/// Says what figures on tmpfs are worth.
pub(crate) const TMPFS_WARNING: &str =
    "<p class=\"warning\">The stores lie on tmpfs, which keeps nothing: durable figures mean nothing.</p>";

/// Where the crate of embedded peers leaves its results.
pub(crate) const PEERS_FILE: &str = "peers.json";

/// A part of the report. Each is measured by a benchmark of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Every target against its limit.
    Targets,
    /// The engines against each other.
    Comparison,
}

impl Part {
    const ALL: [Self; 2] = [Self::Targets, Self::Comparison];

    fn name(self) -> &'static str {
        match self {
            Self::Targets => "targets",
            Self::Comparison => "comparison",
        }
    }

    /// Where the part is kept between runs.
    #[must_use]
    pub fn file(self, extension: &str) -> String {
        format!("{}.{extension}", self.name())
    }
}

/// Writes one part, and makes `index.html` and `summary.json` anew of all parts there are: one that was measured in an
/// earlier run says when. Returns the page's path. The page is one file; nothing is loaded from anywhere.
///
/// # Errors
/// When a file cannot be written.
pub fn publish(directory: &FilePath, part: Part, html: &str, value: &impl Serialize) -> Result<PathBuf> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join(part.file("html")), html)?;
    fs::write(directory.join(part.file("json")), serde_json::to_vec_pretty(value)?)?;
    let mut page = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>CueMQ benchmark</title>\
         <style>{STYLE}</style></head><body>"
    );
    let mut summary = serde_json::Map::new();
    for part in Part::ALL {
        let [html, json] = ["html", "json"].map(|extension| directory.join(part.file(extension)));
        if html.exists() && json.exists() {
            page.push_str(&fs::read_to_string(html)?);
            summary.insert(part.name().to_owned(), serde_json::from_slice(&fs::read(json)?)?);
        } else {
            write!(page, "<p>The {} have not been measured here yet.</p>", part.name())?;
        }
    }
    // Embedded peers are measured by a crate of its own, which leaves only this.
    if let Ok(peers) = fs::read(directory.join(PEERS_FILE)) {
        summary.insert("peers".to_owned(), serde_json::from_slice(&peers)?);
    }
    page.push_str("</body></html>\n");
    fs::write(directory.join("summary.json"), serde_json::to_vec_pretty(&summary)?)?;
    let path = directory.join("index.html");
    fs::write(&path, page)?;
    Ok(path)
}

/// The comparison of the engines, as a part of the page; plots are inline.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn comparison(report: &Report) -> Result<String> {
    let mut out = format!("<h1>CueMQ engines compared, {}</h1>", escape(&report.measured_at));
    write_machine(&mut out, report)?;
    for path in Path::ALL {
        let rows: Vec<&Row> = report.rows_of(path).collect();
        if !rows.is_empty() {
            write!(out, "<h2>{path}</h2><p>{}</p>{}", escape(path.description()), plot::svg(&rows)?)?;
            write_rows(&mut out, &rows)?;
        }
    }
    write_actors(&mut out, report)?;
    Ok(out)
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn write_machine(out: &mut String, report: &Report) -> Result<()> {
    if report.machine.volatile {
        out.push_str(TMPFS_WARNING);
    }
    let mut facts = vec![("profile".to_owned(), report.profile.to_owned())];
    facts.extend(report.machine.facts());
    facts.push(("settings".to_owned(), report.settings.clone()));
    facts.extend(limits::facts(&report.limits));
    out.push_str("<table>");
    for (name, value) in facts {
        write!(out, "<tr><td>{}</td><td>{}</td></tr>", escape(&name), escape(&value))?;
    }
    out.push_str("</table>");
    Ok(())
}

fn write_rows(out: &mut String, rows: &[&Row]) -> Result<()> {
    out.push_str("<table><tr><th>name</th><th>value</th><th>unit</th><th>MB/s</th><th>interval</th>");
    out.push_str(
        "<th>ratio to limit</th><th>limit</th><th>against baseline</th><th>mmap : lsm</th><th>flush</th></tr>",
    );
    for row in rows {
        for engine in EngineKind::ALL {
            if let Some(figure) = row.figures.get(engine.name()) {
                write_figure(out, row, engine, figure)?;
            }
        }
    }
    out.push_str("</table>");
    Ok(())
}

fn write_figure(out: &mut String, row: &Row, engine: EngineKind, figure: &Figure) -> Result<()> {
    let number = |value: f64| if row.unit == "ms" { format!("{value:.3}") } else { short(value) };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let limit = row.limit_name.zip(row.limit).map(|(name, limit)| format!("{name} {}", short(limit)));
    write!(
        out,
        "<tr><td>{engine}, {}, {} {}</td><td>{}</td><td>{}</td><td>{}</td><td>{} to {}</td><td>{}</td><td>{}</td>\
         <td>{}</td><td>{}</td><td>{}</td></tr>",
        bytes(row.body_bytes),
        row.parameter_name,
        row.parameter,
        number(figure.value),
        row.unit,
        or_dash(figure.megabytes_per_second.map(|megabytes| format!("{megabytes:.1}"))),
        number(figure.worst),
        number(figure.best),
        or_dash(figure.of_limit.map(|share| format!("{share:.4}"))),
        or_dash(limit),
        or_dash(figure.change.map(|change| format!("{:+.1} %", change * 100.0))),
        or_dash(row.mmap_to_lsm.map(|factor| format!("{factor:.2}"))),
        row.flush,
    )?;
    Ok(())
}

fn write_actors(out: &mut String, report: &Report) -> Result<()> {
    if report.actors.is_empty() {
        return Ok(());
    }
    out.push_str("<h2>Actors against raw engines</h2><p>What batches through the actors keep of the rate that the ");
    out.push_str("raw engine has with the same batches.</p><table>");
    out.push_str("<tr><th>engine</th><th>body</th><th>batch</th><th>actors : raw</th></tr>");
    for actor in &report.actors {
        let (engine, size) = (actor.engine, bytes(actor.body_bytes));
        write!(out, "<tr><td>{engine}</td><td>{size}</td><td>{}</td><td>{:.3}</td></tr>", actor.batch, actor.share)?;
    }
    out.push_str("</table>");
    Ok(())
}
