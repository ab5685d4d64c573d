//! Aligned columns: one header line, two blanks between columns, nothing wrapped.

use crate::show::{Screen, Tone, plain};

/// Rows under a header.
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// One field.
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A field in a colour.
    pub(crate) fn toned(text: impl AsRef<str>, tone: Tone) -> Self {
        let text = plain(text.as_ref());
        let text = if text.is_empty() { "-".into() } else { text };
        Self { text, tone }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    /// A field; an empty one shows as `-`.
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Neutral)
    }
}

impl Table {
    /// A table of these columns.
    pub(crate) fn new(header: &[&'static str]) -> Self {
        let (header, rows) = (header.to_vec(), Vec::new());
        Self { header, rows }
    }

    /// Adds a row; it has as many fields as the header.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The text, each line at most `width` characters if there is a limit.
    pub(crate) fn render(&self, screen: Screen, width: Option<usize>) -> String {
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| self.width_of(column))
            .collect();
        let header = self.header.iter().map(Cell::from).collect();
        let mut text = String::new();
        for row in std::iter::once(&header).chain(&self.rows) {
            text.push_str(&line(row, &widths, (screen, width)));
            text.push('\n');
        }
        text
    }

    fn width_of(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        let cells = cells.map(|cell| cell.text.chars().count());
        let header = self.header.get(column).map_or(0, |name| name.len());
        cells.max().unwrap_or(0).max(header)
    }
}

fn line(row: &[Cell], widths: &[usize], (screen, limit): (Screen, Option<usize>)) -> String {
    let mut left = limit.unwrap_or(usize::MAX);
    let mut line = String::new();
    for (number, (cell, width)) in row.iter().zip(widths).enumerate() {
        let gap = if number == 0 { 0 } else { 2 };
        left = left.saturating_sub(gap);
        if left == 0 {
            break;
        }
        line.push_str(&" ".repeat(gap));
        let text = cut(&cell.text, left);
        let used = text.chars().count();
        left = left.saturating_sub(used.max(*width));
        line.push_str(&screen.paint(&text, cell.tone));
        let last = number + 1 == row.len();
        if !last {
            line.push_str(&" ".repeat(width.saturating_sub(used)));
        }
    }
    line.truncate(line.trim_end().len());
    line
}

fn cut(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let kept = text.chars().take(limit.saturating_sub(1));
    kept.chain(std::iter::once('…')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_the_last_one_is_cut_at_the_edge() {
        let screen = Screen {
            terminal: false,
            colour: false,
        };
        let mut table = Table::new(&["NAME", "WHY"]);
        table.row(vec!["home-worker".into(), "".into()]);
        table.row(vec!["w2".into(), "hard-nat both\u{1b}[1m sides".into()]);
        let whole = table.render(screen, None);
        assert_eq!(
            whole,
            "NAME         WHY\nhome-worker  -\nw2           hard-nat both\\u{1b}[1m sides\n"
        );
        for line in table.render(screen, Some(20)).lines() {
            assert!(line.chars().count() <= 20, "{line}");
        }
    }
}
