//! One plot per target and unit: a bar per row with the extent of its values, its limit and its target.

use plotters::backend::SVGBackend;
use plotters::drawing::IntoDrawingArea;
use plotters::element::{PathElement, Rectangle};
use plotters::style::text_anchor::HPos;
use plotters::style::{BLACK, Color, RGBColor, WHITE};

use super::row::Row;
use crate::Result;
use crate::plot::{Area, Axis, GREY, LIMIT_COLOUR, failed, whole, write};

const WIDTH: i32 = 1080;
/// Where bars begin: names stand before.
const LEFT: i32 = 430;
const RIGHT: i32 = 24;
const TOP: i32 = 30;
const ROW_HEIGHT: i32 = 24;
const BOTTOM: i32 = 24;
const BAR_COLOUR: RGBColor = RGBColor(30, 110, 180);
const TARGET_COLOUR: RGBColor = RGBColor(20, 140, 60);

/// The rows of one target: values of different units are no neighbours, so each unit has a plot of its own.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn by_unit(rows: &[Row]) -> Result<Vec<String>> {
    let mut units: Vec<&str> = Vec::new();
    for row in rows {
        if !units.contains(&row.unit.as_str()) {
            units.push(&row.unit);
        }
    }
    units.into_iter().map(|unit| svg(&rows.iter().filter(|row| row.unit == unit).collect::<Vec<_>>())).collect()
}

fn svg(rows: &[&Row]) -> Result<String> {
    let height = TOP + i32::try_from(rows.len())? * ROW_HEIGHT + BOTTOM;
    let mut out = String::new();
    {
        let size = (u32::try_from(WIDTH)?, u32::try_from(height)?);
        let area = SVGBackend::with_string(&mut out, size).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let goals = rows.iter().filter_map(|row| row.target.value(row.limit));
        let values = rows.iter().flat_map(|row| row.pairs.iter().flat_map(|pair| [pair.value, pair.limit]));
        let axis = Axis::around(values.chain(goals));
        draw_axis(&area, axis, rows.first().copied(), height)?;
        for (number, row) in (0..).zip(rows) {
            draw_row(&area, axis, row, TOP + number * ROW_HEIGHT)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(out)
}

/// Where a value lies; what is not above 0 lies at the very left.
fn x(axis: Axis, value: f64) -> i32 {
    let share = if value > 0.0 { axis.share(value).clamp(0.0, 1.0) } else { 0.0 };
    LEFT + whole(share * f64::from(WIDTH - LEFT - RIGHT))
}

fn draw_axis(area: &Area<'_>, axis: Axis, row: Option<&Row>, height: i32) -> Result<()> {
    for value in axis.powers() {
        let x = x(axis, value);
        area.draw(&PathElement::new(vec![(x, TOP), (x, height - BOTTOM)], GREY)).map_err(failed)?;
        write(area, row.map_or_else(String::new, |row| row.show(value)), (x, height - BOTTOM / 2), HPos::Center)?;
    }
    let legend = [("median, least to most", BAR_COLOUR), ("limit", LIMIT_COLOUR), ("target", TARGET_COLOUR)];
    let mut x = LEFT;
    for (name, colour) in legend {
        area.draw(&Rectangle::new([(x, 10), (x + 12, 20)], colour.filled())).map_err(failed)?;
        write(area, name.to_owned(), (x + 16, 15), HPos::Left)?;
        x += 170;
    }
    Ok(())
}

fn draw_row(area: &Area<'_>, axis: Axis, row: &Row, top: i32) -> Result<()> {
    let (low, high, middle) = (top + 4, top + ROW_HEIGHT - 4, top + ROW_HEIGHT / 2);
    write(area, row.name.clone(), (LEFT - 8, middle), HPos::Right)?;
    area.draw(&Rectangle::new([(LEFT, low), (x(axis, row.value), high)], BAR_COLOUR.filled())).map_err(failed)?;
    let values = || row.pairs.iter().map(|pair| pair.value);
    let (least, most) = (values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max));
    let extent = vec![(x(axis, least), middle), (x(axis, most), middle)];
    area.draw(&PathElement::new(extent, BLACK.stroke_width(2))).map_err(failed)?;
    let line = |value: f64, colour: RGBColor| {
        let x = x(axis, value);
        let line = PathElement::new(vec![(x, top + 1), (x, top + ROW_HEIGHT - 1)], colour.stroke_width(3));
        area.draw(&line).map_err(failed)
    };
    line(row.limit, LIMIT_COLOUR)?;
    if let Some(goal) = row.target.value(row.limit) {
        line(goal, TARGET_COLOUR)?;
    }
    Ok(())
}
