//! Services with their rates above, verdicts and changes below.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row, Sparkline, Table};

use super::super::super::status::show::counted;
use super::super::super::units::time;
use super::super::columns::{Column, GAP, fitting};
use super::super::history::Growth;
use super::super::screen::Screen;
use super::{aligned, coloured, head, per_second, row};
use crate::api::types::ServiceCount;
use crate::system::escape;

/// Narrowest picture of rates.
const NARROWEST: u16 = 10;
/// How wide verdicts are beside changes, and how wide a screen that has room for both is.
const VERDICTS: u16 = 44;
const BOTH: u16 = 80;

const SERVICES: [Column<(ServiceCount, Option<f64>)>; 6] = [
    Column { head: "SERVICE", rank: 0, is_right: false, cell: |(one, _)| name(one) },
    Column { head: "LISTEN", rank: 3, is_right: false, cell: |(one, _)| one.service.clone() },
    Column { head: "BALANCE", rank: 4, is_right: false, cell: |(one, _)| one.balance.clone() },
    Column { head: "BACKENDS", rank: 1, is_right: false, cell: |(one, _)| counted(one) },
    Column { head: "FLOWS", rank: 2, is_right: true, cell: |(one, _)| one.open.to_string() },
    Column { head: "CONN/S", rank: 0, is_right: true, cell: |(_, rate)| per_second(*rate) },
];

fn name(one: &ServiceCount) -> String {
    one.service_name.clone().unwrap_or_else(|| one.service.clone())
}

/// A line for each service, and a picture of its rates to the right.
pub(super) fn services(frame: &mut Frame, area: Rect, screen: &Screen) {
    let history = &screen.history;
    let rows: Vec<_> = history
        .now
        .instance
        .services
        .iter()
        .map(|one| (one.clone(), history.rate_of(&one.service)))
        .collect();
    let shown = fitting(&SERVICES, &rows, area.width.saturating_sub(NARROWEST + GAP));
    let width = shown.iter().map(|column| column.width + GAP).sum();
    let [left, right] =
        Layout::horizontal([Constraint::Length(width), Constraint::Min(0)]).areas(area);
    let widths = shown.iter().map(|column| Constraint::Length(column.width));
    let lines = (0..rows.len()).map(|at| row(&shown, at, Style::new()));
    let heads = Row::new(shown.iter().map(head)).bold();
    frame.render_widget(Table::new(lines, widths).header(heads).column_spacing(GAP), left);
    for (line, (service, _)) in right.rows().skip(1).zip(&rows) {
        let rates = history.rates_of(&service.service);
        let latest = rates.len().saturating_sub(usize::from(line.width));
        // In tenths: whole numbers are too coarse for quiet services.
        let bars = rates.iter().skip(latest).map(|rate| tenths(*rate));
        let picture = Sparkline::default().data(bars).style(coloured(screen, Color::Cyan));
        frame.render_widget(picture, line);
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is no less than 0, and casts saturate"
)]
fn tenths(rate: f64) -> u64 {
    (rate * 10.0) as u64
}

/// Verdicts, and beside them what has changed.
pub(super) fn bottom(frame: &mut Frame, area: Rect, screen: &Screen) {
    if area.width < BOTH {
        return verdicts(frame, area, screen);
    }
    let [left, right] =
        Layout::horizontal([Constraint::Length(VERDICTS), Constraint::Min(0)]).areas(area);
    verdicts(frame, left, screen);
    changes(frame, right, screen);
}

const COLUMNS: [Column<Growth>; 3] = [
    Column { head: "VERDICT", rank: 0, is_right: false, cell: said },
    Column { head: "PACKETS/S", rank: 1, is_right: true, cell: |one| format!("{:.1}", one.rate) },
    Column { head: "PACKETS", rank: 0, is_right: true, cell: |one| one.packets.to_string() },
];

fn said(one: &Growth) -> String {
    let dropped = if one.is_drop() { " (dropped)" } else { "" };
    format!("{}{dropped}", one.verdict.name())
}

fn verdicts(frame: &mut Frame, area: Rect, screen: &Screen) {
    let rows = screen.history.verdicts();
    let shown = fitting(&COLUMNS, &rows, area.width);
    let widths = shown.iter().map(|column| Constraint::Length(column.width));
    let lines = rows.iter().enumerate().map(|(at, one)| {
        let cells = shown
            .iter()
            .map(|column| aligned(column, column.cells.get(at).cloned().unwrap_or_default()));
        let grows = one.is_drop() && one.rate > 0.0;
        let style = if grows { coloured(screen, Color::Red) } else { Style::new() };
        Row::new(cells.collect::<Vec<_>>()).style(style)
    });
    let heads = Row::new(shown.iter().map(head)).bold();
    frame.render_widget(Table::new(lines, widths).header(heads).column_spacing(GAP), area);
}

fn changes(frame: &mut Frame, area: Rect, screen: &Screen) {
    let ago = |at| time(screen.clock.saturating_sub(at));
    let changes = screen.history.changes.iter();
    let lines = changes
        .map(|change| Line::from(format!("{:>7}  {}", ago(change.at), escape::line(&change.what))));
    let lines = std::iter::once(Line::from("   AGO   CHANGE").bold()).chain(lines);
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
}
