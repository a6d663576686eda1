//! The report as one self-contained page.

use std::fmt::Write;

use crate::configuration::Path;
use crate::report::{Figure, Report, Row};
use crate::store::EngineKind;
use crate::table::{bytes, short};
use crate::{Result, limits, plot};

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:1em 0}td,th{border-bottom:1px solid #ddd;padding:.2em .7em;text-align:right}\
th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}.warning{color:#b00;font-weight:bold}";

/// The whole page; plots are inline, nothing is loaded from anywhere.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn html(report: &Report) -> Result<String> {
    let mut out = String::new();
    write!(
        out,
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>CueMQ benchmark</title>\
         <style>{STYLE}</style></head><body><h1>CueMQ benchmark</h1>"
    )?;
    write_machine(&mut out, report)?;
    for path in Path::ALL {
        let rows: Vec<&Row> = report.rows_of(path).collect();
        if !rows.is_empty() {
            write!(out, "<h2>{path}</h2><p>{}</p>{}", escape(path.description()), plot::svg(&rows)?)?;
            write_rows(&mut out, &rows)?;
        }
    }
    write_actors(&mut out, report)?;
    out.push_str("</body></html>\n");
    Ok(out)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn write_machine(out: &mut String, report: &Report) -> Result<()> {
    let machine = &report.machine;
    if machine.volatile {
        out.push_str(
            "<p class=\"warning\">The stores lie on tmpfs, which keeps nothing: durable figures mean nothing.</p>",
        );
    }
    let facts = [
        ("profile", report.profile.to_owned()),
        ("machine", format!("{} cores, {}, {} MiB", machine.cores, machine.processor, machine.memory_bytes >> 20)),
        ("kernel", format!("Linux {}", machine.kernel)),
        ("stores", format!("{} on {}", machine.directory, machine.file_system)),
        ("settings", report.settings.clone()),
    ];
    let limits = limits::facts(&report.limits);
    let limits = limits.iter().map(|(name, value)| (name.as_str(), value.clone()));
    let facts = facts.into_iter().chain(limits);
    out.push_str("<table>");
    for (name, value) in facts {
        write!(out, "<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(&value))?;
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
