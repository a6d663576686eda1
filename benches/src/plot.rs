//! One plot per path: a bar per engine, a line for the limit.

use plotters::backend::SVGBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{PathElement, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{BLACK, Color, RGBColor, TextStyle, WHITE};

use crate::report::Row;
use crate::store::EngineKind;
use crate::table::{bytes, short};
use crate::{Failure, Result};

const HEIGHT: i32 = 320;
const LEFT: i32 = 80;
const TOP: i32 = 36;
const BOTTOM: i32 = 52;
const BAR_WIDTH: i32 = 22;
/// Three bars and a gap.
const GROUP_WIDTH: i32 = 3 * BAR_WIDTH + 26;
/// Room for the legend beside few groups.
const LEAST_WIDTH: i32 = 520;
pub(crate) const GREY: RGBColor = RGBColor(210, 210, 210);
pub(crate) const LIMIT_COLOUR: RGBColor = RGBColor(200, 30, 30);

pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn colour(engine: EngineKind) -> RGBColor {
    match engine {
        EngineKind::Memory => RGBColor(150, 150, 150),
        EngineKind::Mmap => RGBColor(30, 110, 180),
        EngineKind::Lsm => RGBColor(225, 140, 30),
    }
}

/// The logarithmic axis: whole powers of ten around all values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    low: i32,
    high: i32,
}

impl Axis {
    /// Holds all values that are above 0.
    pub(crate) fn around(values: impl Iterator<Item = f64>) -> Self {
        let logs = values.filter(|value| *value > 0.0).map(f64::log10);
        let (low, high) = logs.fold((f64::MAX, f64::MIN), |(low, high), log| (low.min(log), high.max(log)));
        if low > high {
            return Self { low: 0, high: 1 };
        }
        // A bar at the very bottom would not be seen.
        let (low, high) = (whole(low.floor()), whole(high.ceil()));
        Self { low: if high > low { low } else { low - 1 }, high }
    }

    /// Where a value lies between the axis's ends: 0 to 1 for those it was made around.
    pub(crate) fn share(self, value: f64) -> f64 {
        (value.log10() - f64::from(self.low)) / f64::from(self.high - self.low)
    }

    /// The powers of ten on it.
    pub(crate) fn powers(self) -> impl Iterator<Item = f64> {
        (self.low..=self.high).map(|power| 10f64.powi(power))
    }

    fn y(self, value: f64) -> i32 {
        HEIGHT - BOTTOM - whole(self.share(value) * f64::from(HEIGHT - TOP - BOTTOM))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "pixels and powers of ten are small")]
pub(crate) fn whole(value: f64) -> i32 {
    value.round() as i32
}

/// The rows of one path as SVG.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn svg(rows: &[&Row]) -> Result<String> {
    let width = (LEFT + i32::try_from(rows.len())? * GROUP_WIDTH + 20).max(LEAST_WIDTH);
    let mut out = String::new();
    {
        let size = (u32::try_from(width)?, u32::try_from(HEIGHT)?);
        let area = SVGBackend::with_string(&mut out, size).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let values = rows.iter().flat_map(|row| row.figures.values().map(|f| f.value).chain(row.limit));
        let axis = Axis::around(values);
        draw_axis(&area, axis, width, rows.first().map_or("", |row| row.unit))?;
        draw_legend(&area, rows.iter().find_map(|row| row.limit_name))?;
        for (number, row) in (0..).zip(rows) {
            draw_row(&area, axis, LEFT + 12 + number * GROUP_WIDTH, row)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(out)
}

pub(crate) fn failed(error: impl std::fmt::Display) -> Failure {
    format!("a plot could not be drawn: {error}").into()
}

fn style(horizontal: HPos) -> TextStyle<'static> {
    TextStyle::from(("sans-serif", 12)).pos(Pos::new(horizontal, VPos::Center))
}

pub(crate) fn write(area: &Area<'_>, text: String, at: (i32, i32), horizontal: HPos) -> Result<()> {
    area.draw(&Text::new(text, at, style(horizontal))).map_err(failed)
}

fn draw_axis(area: &Area<'_>, axis: Axis, width: i32, unit: &str) -> Result<()> {
    for value in axis.powers() {
        let y = axis.y(value);
        area.draw(&PathElement::new(vec![(LEFT, y), (width - 8, y)], GREY)).map_err(failed)?;
        let label = if value < 1.0 { format!("{value}") } else { short(value) };
        write(area, label, (LEFT - 6, y), HPos::Right)?;
    }
    write(area, unit.to_owned(), (LEFT - 6, TOP / 2), HPos::Right)
}

fn draw_legend(area: &Area<'_>, limit: Option<&str>) -> Result<()> {
    let mut x = LEFT + 12;
    for engine in EngineKind::ALL {
        area.draw(&Rectangle::new([(x, 12), (x + 12, 24)], colour(engine).filled())).map_err(failed)?;
        write(area, engine.name().to_owned(), (x + 16, 18), HPos::Left)?;
        x += 84;
    }
    if let Some(limit) = limit {
        area.draw(&PathElement::new(vec![(x, 18), (x + 14, 18)], LIMIT_COLOUR.stroke_width(3))).map_err(failed)?;
        write(area, limit.to_owned(), (x + 18, 18), HPos::Left)?;
    }
    Ok(())
}

fn draw_row(area: &Area<'_>, axis: Axis, x: i32, row: &Row) -> Result<()> {
    let floor = HEIGHT - BOTTOM;
    for (number, engine) in (0..).zip(EngineKind::ALL) {
        if let Some(figure) = row.figures.get(engine.name()) {
            let left = x + number * BAR_WIDTH;
            let corners = [(left, axis.y(figure.value)), (left + BAR_WIDTH - 3, floor)];
            area.draw(&Rectangle::new(corners, colour(engine).filled())).map_err(failed)?;
        }
    }
    let right = x + 3 * BAR_WIDTH;
    if let Some(limit) = row.limit {
        let y = axis.y(limit);
        let line = PathElement::new(vec![(x - 4, y), (right + 1, y)], LIMIT_COLOUR.stroke_width(3));
        area.draw(&line).map_err(failed)?;
    }
    area.draw(&PathElement::new(vec![(x - 6, floor), (right + 3, floor)], BLACK)).map_err(failed)?;
    let middle = i32::midpoint(x, right);
    write(area, bytes(row.body_bytes), (middle, floor + 14), HPos::Center)?;
    write(area, format!("{} {}", row.parameter_name, row.parameter), (middle, floor + 32), HPos::Center)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_holds_all_values() {
        let axis = Axis::around([1500.0, 90_000.0].into_iter());
        assert_eq!((axis.low, axis.high), (3, 5));
        assert_eq!(axis.y(1e3), HEIGHT - BOTTOM);
        assert_eq!(axis.y(1e5), TOP);
        let one = Axis::around([1000.0].into_iter());
        assert!(one.low < one.high, "{one:?} has a height");
        let none = Axis::around(std::iter::empty());
        assert!(none.low < none.high, "{none:?} has a height");
    }
}
