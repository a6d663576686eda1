//! Tables on standard output.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

/// A table of names and values.
#[derive(Debug)]
pub struct Facts(Table);

impl Facts {
    /// An empty table under a title.
    #[must_use]
    pub fn new(title: &str) -> Self {
        let mut table = styled();
        table.set_header([title, ""]);
        Self(table)
    }

    /// Adds one line.
    pub fn add(&mut self, name: &str, value: impl ToString) -> &mut Self {
        self.0.add_row([name.to_owned(), value.to_string()]);
        self
    }

    /// Prints the table.
    pub fn print(&self) {
        println!("{}", self.0);
    }
}

/// Prints rows of cells under a header. Cells that begin with a digit are aligned to the right.
pub fn print_grid<const COLUMNS: usize>(header: [&str; COLUMNS], rows: &[[String; COLUMNS]]) {
    let mut table = styled();
    table.set_header(header);
    for row in rows {
        let align = |text: &String| {
            let is_number = text.starts_with(|c: char| c.is_ascii_digit());
            let alignment = if is_number { CellAlignment::Right } else { CellAlignment::Left };
            Cell::new(text).set_alignment(alignment)
        };
        table.add_row(row.iter().map(align));
    }
    println!("{table}");
}

fn styled() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// A count with commas between its thousands.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
    }
}
