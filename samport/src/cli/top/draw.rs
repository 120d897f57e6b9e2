//! The screen, drawn from what is known. Pure: the same things look the same.

mod parts;

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table};

use self::parts::{bottom, services};
use super::super::backends::{round_trip, share, state};
use super::super::units::{bytes, time};
use super::columns::{Column, GAP, Shown, fitting};
use super::screen::{Mode, Screen, Sort};
use crate::api::types::{Backend, Instance};

/// Lines below which only the backends are shown.
const FEW: u16 = 8;
/// Lines from which verdicts and changes are shown too.
const MANY: u16 = 18;
/// How many lines those get.
const BOTTOM: u16 = 7;

const HELP: [&str; 13] = [
    "↑ ↓ j k g G   select a backend",
    "d             drain it: no new connections, open ones finish",
    "u             undrain it",
    "w             set its weight",
    "+ -           weight up or down by 1",
    "s             sort by service, conn/s, flows, share, SYN-RTT",
    "q Ctrl-C      quit; samport keeps running",
    "",
    "SHARE         of new connections: expected, and so far",
    "FLOWS         connections that are open",
    "SYN-RTT       until the backend's answer, of 50 and of 99 in 100",
    "",
    "Commands ask first (y/n). Any key closes this help.",
];

/// Draws everything.
pub(super) fn draw(frame: &mut Frame, screen: &Screen) {
    let area = frame.area();
    let header = if area.height < FEW { 1 } else { 2 };
    let services_of = u16::try_from(screen.history.now.instance.services.len()).unwrap_or(u16::MAX);
    let services_height =
        if area.height < FEW { 0 } else { services_of.saturating_add(1).min(area.height / 3) };
    let below = if area.height < MANY { 0 } else { BOTTOM };
    let [head, above, middle, low, foot] = Layout::vertical([
        Constraint::Length(header),
        Constraint::Length(services_height),
        Constraint::Min(0),
        Constraint::Length(below),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(heading(screen, header)), head);
    services(frame, above, screen);
    backends(frame, middle, screen);
    bottom(frame, low, screen);
    frame.render_widget(Paragraph::new(footer(screen)), foot);
    if screen.mode == Mode::Help {
        help(frame, area);
    }
}

/// A style with this colour, if there may be colours.
fn coloured(screen: &Screen, colour: Color) -> Style {
    if screen.is_coloured { Style::new().fg(colour) } else { Style::new() }
}

fn heading(screen: &Screen, lines: u16) -> Vec<Line<'static>> {
    let instance = &screen.history.now.instance;
    let drops = format!("{} drops", instance.drops);
    let first = Line::from(vec![
        format!("samport {}", instance.name).bold(),
        Span::raw(format!("  {:.1} conn/s  ", screen.history.rate())),
        Span::styled(
            drops,
            if instance.drops > 0 { coloured(screen, Color::Red) } else { Style::new() },
        ),
        Span::raw(format!("  {} of {} flows", flows(screen), instance.limits.flows)),
    ]);
    let second = match &screen.trouble {
        Some(why) => {
            let said = format!("no answer, trying again; this is from {} ago ({why})", age(screen));
            Line::styled(said, coloured(screen, Color::Red).add_modifier(Modifier::BOLD))
        }
        None => Line::from(particulars(instance, screen)),
    };
    // Where there is room for one line, trouble is what matters.
    if lines == 1 && screen.trouble.is_some() { vec![second] } else { vec![first, second] }
}

/// How old what is shown is.
fn age(screen: &Screen) -> String {
    time(screen.clock.saturating_sub(screen.history.at))
}

fn particulars(instance: &Instance, screen: &Screen) -> String {
    let (interfaces, ports) = (instance.interfaces.join(","), instance.ports.join(","));
    let up = uptime(instance.started_ms, screen);
    let memory = bytes(instance.memory_bytes);
    let left_out = match instance.left_out.len() {
        0 => String::new(),
        count => format!("  {count} left out (`samport status` says why)"),
    };
    format!(
        "{ports} on {interfaces}  {}  pid {}{up}  {memory}{left_out}",
        instance.hook, instance.pid
    )
}

fn flows(screen: &Screen) -> u64 {
    screen.history.now.instance.services.iter().map(|service| service.open).sum()
}

fn uptime(started_ms: u64, screen: &Screen) -> String {
    let now = screen.time_of_day;
    match started_ms {
        0 => String::new(),
        started => format!("  up {}", time(now.saturating_sub(Duration::from_millis(started)))),
    }
}

const BACKENDS: [Column<(Backend, Option<f64>)>; 10] = [
    Column { head: "SERVICE", rank: 6, is_right: false, cell: |(one, _)| service(one) },
    Column { head: "BACKEND", rank: 0, is_right: false, cell: |(one, _)| one.name.clone() },
    Column { head: "ADDRESS", rank: 7, is_right: false, cell: |(one, _)| one.address.clone() },
    Column { head: "STATE", rank: 0, is_right: false, cell: |(one, _)| state(one) },
    Column { head: "WEIGHT", rank: 2, is_right: true, cell: |(one, _)| one.weight.to_string() },
    Column { head: "SHARE exp/act", rank: 3, is_right: true, cell: |(one, _)| share(one) },
    Column { head: "FLOWS", rank: 4, is_right: true, cell: |(one, _)| open(one) },
    Column { head: "TOTAL", rank: 8, is_right: true, cell: |(one, _)| total(one) },
    Column { head: "CONN/S", rank: 1, is_right: true, cell: |(_, rate)| per_second(*rate) },
    Column { head: "SYN-RTT p50/p99", rank: 5, is_right: true, cell: |(one, _)| round_trip(one) },
];

fn service(one: &Backend) -> String {
    one.service_name.clone().unwrap_or_else(|| one.service.clone())
}

fn open(one: &Backend) -> String {
    let open = one.counters.and_then(|counters| counters.open);
    open.map_or_else(|| "-".to_owned(), |open| open.to_string())
}

fn total(one: &Backend) -> String {
    one.counters.map_or_else(|| "-".to_owned(), |counters| counters.flows.to_string())
}

fn per_second(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

fn backends(frame: &mut Frame, area: Rect, screen: &Screen) {
    let all = screen.backends();
    if all.is_empty() {
        return frame.render_widget(Paragraph::new("no backend yet"), area);
    }
    let rows: Vec<_> =
        all.iter().map(|one| ((*one).clone(), screen.history.rate_of_backend(one))).collect();
    let shown = fitting(&BACKENDS, &rows, area.width);
    let styles: Vec<Style> = all.iter().map(|one| style_of(screen, &one.state)).collect();
    let lines = styles.iter().enumerate().map(|(at, style)| row(&shown, at, *style));
    let widths = shown.iter().map(|column| Constraint::Length(column.width));
    let mut table_state =
        ratatui::widgets::TableState::new().with_selected(screen.place_of_selected());
    let table = Table::new(lines, widths)
        .header(Row::new(shown.iter().map(head)).bold())
        .column_spacing(GAP)
        .row_highlight_style(Modifier::REVERSED);
    frame.render_stateful_widget(table, area, &mut table_state);
}

fn head(column: &Shown) -> Cell<'static> {
    aligned(column, column.head.to_owned())
}

fn row(shown: &[Shown], at: usize, style: Style) -> Row<'static> {
    let cells = shown.iter().map(|column| {
        let cell = aligned(column, column.cells.get(at).cloned().unwrap_or_default());
        if column.head == "STATE" { cell.style(style) } else { cell }
    });
    Row::new(cells.collect::<Vec<_>>())
}

fn aligned(column: &Shown, text: String) -> Cell<'static> {
    let line = Line::from(text);
    Cell::from(if column.is_right { line.right_aligned() } else { line })
}

fn style_of(screen: &Screen, state: &str) -> Style {
    coloured(
        screen,
        match state {
            "active" => Color::Green,
            "draining" => Color::Yellow,
            "unhealthy" => Color::Red,
            "starting" => Color::Cyan,
            _ => Color::DarkGray,
        },
    )
}

fn footer(screen: &Screen) -> Line<'static> {
    match &screen.mode {
        Mode::Asking { typed } => {
            let name = screen.selected().map(|one| one.name.clone()).unwrap_or_default();
            Line::from(format!("weight of {name}: {typed}_  (Enter, Esc)")).bold()
        }
        Mode::Confirming { question, .. } => Line::from(format!("{question}? y/n")).bold(),
        Mode::Watching if !screen.message.is_empty() => Line::from(screen.message.clone()).bold(),
        Mode::Watching | Mode::Help => {
            let sorted = match screen.sort {
                Sort::Service => "s sort".to_owned(),
                other => format!("s by {}", other.name()),
            };
            Line::from(format!("? help  q quit  d drain  u undrain  w weigh  + - weight  {sorted}"))
        }
    }
}

fn help(frame: &mut Frame, area: Rect) {
    let width = HELP.iter().map(|line| line.chars().count()).max().unwrap_or(0) + 4;
    let [width, height] =
        [width, HELP.len() + 2].map(|size| u16::try_from(size).unwrap_or(u16::MAX));
    let place = area.centered(Constraint::Length(width), Constraint::Length(height));
    let text: Vec<Line> = HELP.iter().map(|line| Line::from(*line)).collect();
    let block = Block::bordered().title(" keys ").padding(ratatui::widgets::Padding::horizontal(1));
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(text).block(block), place);
}

#[cfg(test)]
mod tests;
