//! What is on the screen apart from the numbers: who is selected, what is asked; and what keys do to it.
//! Pure.

use std::cmp::Ordering;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::history::{Documents, History, Key};
use crate::api::types::Backend;
use crate::control::commands::OperatorCommand;

/// Digits of the largest weight.
const LONGEST_WEIGHT: usize = 10;

/// What keys are about at the moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// Looking on.
    Watching,
    /// A weight is being typed.
    Asking { typed: String },
    /// An order waits for yes or no.
    Confirming { question: String, order: OperatorCommand },
    /// The keys are being explained.
    Help,
}

/// What a key has led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Act {
    /// Leave.
    Quit,
    /// Have this done.
    CarryOut(OperatorCommand),
}

/// What backends are ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sort {
    Service,
    Rate,
    Flows,
    Share,
    Time,
}

impl Sort {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Rate => "conn/s",
            Self::Flows => "flows",
            Self::Share => "share",
            Self::Time => "SYN-RTT",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Service => Self::Rate,
            Self::Rate => Self::Flows,
            Self::Flows => Self::Share,
            Self::Share => Self::Time,
            Self::Time => Self::Service,
        }
    }
}

/// All of it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Screen {
    pub(super) history: History,
    pub(super) mode: Mode,
    pub(super) sort: Sort,
    /// What came of the last order, or what a key could not do.
    pub(super) message: String,
    /// Why there is no answer any more.
    pub(super) trouble: Option<String>,
    /// The time by the clock of the samples.
    pub(super) clock: Duration,
    /// The time since 1970.
    pub(super) time_of_day: Duration,
    /// Whether colours may be used.
    pub(super) is_coloured: bool,
    selected: Option<Key>,
    /// Where that was: who has its place is selected if it goes.
    place: usize,
}

impl Screen {
    pub(super) fn new(first: Documents, at: Duration, is_coloured: bool) -> Self {
        let mut screen = Self {
            history: History::beginning_with(first, at),
            mode: Mode::Watching,
            sort: Sort::Service,
            message: String::new(),
            trouble: None,
            clock: at,
            time_of_day: Duration::ZERO,
            is_coloured,
            selected: None,
            place: 0,
        };
        screen.select(0);
        screen
    }

    /// Takes in what samport says, or why it says nothing.
    pub(super) fn see(&mut self, seen: Result<Documents, String>, at: Duration) {
        self.clock = at;
        match seen {
            Ok(documents) => {
                self.trouble = None;
                self.history.add(documents, at);
                if self.place_of_selected().is_none() {
                    self.select(self.place);
                }
            }
            Err(why) => self.trouble = Some(why),
        }
    }

    /// The backends in the order they are shown in.
    pub(super) fn backends(&self) -> Vec<&Backend> {
        let mut all: Vec<&Backend> = self.history.now.backends.iter().collect();
        let counters = |one: &Backend| one.counters.unwrap_or_default();
        let by = |a: &&Backend, b: &&Backend| match self.sort {
            Sort::Service => Ordering::Equal,
            Sort::Rate => {
                let rate = |one| self.history.rate_of_backend(one).unwrap_or_default();
                rate(b).total_cmp(&rate(a))
            }
            Sort::Flows => counters(b).open.cmp(&counters(a).open),
            Sort::Share => b.share_actual.total_cmp(&a.share_actual),
            Sort::Time => counters(b).handshake_p99_us.cmp(&counters(a).handshake_p99_us),
        };
        // A stable sort: equals stay in the order of services and names.
        all.sort_by(by);
        all
    }

    /// Which line is selected.
    pub(super) fn place_of_selected(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.backends().into_iter().position(|one| Key::from(one) == *selected)
    }

    fn select(&mut self, place: usize) {
        let all = self.backends();
        let place = place.min(all.len().saturating_sub(1));
        (self.selected, self.place) = (all.get(place).map(|one| Key::from(*one)), place);
    }

    /// What a key does.
    pub(super) fn press(&mut self, key: KeyEvent) -> Option<Act> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return (key.code == KeyCode::Char('c')).then_some(Act::Quit);
        }
        match std::mem::replace(&mut self.mode, Mode::Watching) {
            Mode::Watching => self.press_watching(key.code),
            Mode::Asking { typed } => {
                self.press_asking(typed, key.code);
                None
            }
            Mode::Confirming { question, order } => {
                self.press_confirming(question, order, key.code)
            }
            // Any key ends it.
            Mode::Help => None,
        }
    }

    fn press_watching(&mut self, key: KeyCode) -> Option<Act> {
        self.message.clear();
        let place = self.place_of_selected().unwrap_or(self.place);
        match key {
            KeyCode::Char('q') => return Some(Act::Quit),
            KeyCode::Down | KeyCode::Char('j') => self.select(place.saturating_add(1)),
            KeyCode::Up | KeyCode::Char('k') => self.select(place.saturating_sub(1)),
            KeyCode::Home | KeyCode::Char('g') => self.select(0),
            KeyCode::End | KeyCode::Char('G') => self.select(usize::MAX),
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.place = self.place_of_selected().unwrap_or_default();
            }
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            KeyCode::Char('d') => self.confirm(|one, name| {
                let question = format!("drain {}: no new connections for it", one.name);
                Some((question, OperatorCommand::Drain(name)))
            }),
            KeyCode::Char('u') => self.confirm(|one, name| {
                let question = format!("undrain {}: new connections for it again", one.name);
                Some((question, OperatorCommand::Undrain(name)))
            }),
            KeyCode::Char('w') if self.selected_or_say().is_some() => {
                self.mode = Mode::Asking { typed: String::new() };
            }
            KeyCode::Char('+') => {
                self.confirm(|one, name| weigh(one, name, one.weight.checked_add(1)?));
            }
            KeyCode::Char('-') => {
                self.confirm(|one, name| weigh(one, name, one.weight.checked_sub(1)?));
            }
            _ => {}
        }
        None
    }

    fn press_asking(&mut self, mut typed: String, key: KeyCode) {
        match key {
            KeyCode::Esc => return,
            KeyCode::Enter => {
                match typed.parse() {
                    Ok(weight) => self.confirm(|one, name| weigh(one, name, weight)),
                    Err(_) => self.message = format!("a weight is 0 to {}", u32::MAX),
                }
                return;
            }
            KeyCode::Backspace => {
                typed.pop();
            }
            KeyCode::Char(digit) if digit.is_ascii_digit() && typed.len() < LONGEST_WEIGHT => {
                typed.push(digit);
            }
            _ => {}
        }
        self.mode = Mode::Asking { typed };
    }

    fn press_confirming(
        &mut self,
        question: String,
        order: OperatorCommand,
        key: KeyCode,
    ) -> Option<Act> {
        match key {
            KeyCode::Char('y' | 'Y') => {
                self.say("ordered; it is not in force yet");
                Some(Act::CarryOut(order))
            }
            KeyCode::Char('n' | 'N') | KeyCode::Esc => {
                self.say("left as it was");
                None
            }
            _ => {
                self.mode = Mode::Confirming { question, order };
                None
            }
        }
    }

    /// Shows a line until the next key.
    pub(super) fn say(&mut self, message: impl Into<String>) {
        self.message = message.into();
    }

    /// The selected backend.
    pub(super) fn selected(&self) -> Option<&Backend> {
        let place = self.place_of_selected()?;
        self.backends().get(place).copied()
    }

    fn selected_or_say(&mut self) -> Option<Backend> {
        let selected = self.selected().cloned();
        if selected.is_none() {
            self.say("no backend is selected");
        }
        selected
    }

    /// Asks whether an order about the selected backend is meant.
    fn confirm(
        &mut self,
        order: impl FnOnce(&Backend, String) -> Option<(String, OperatorCommand)>,
    ) {
        let Some(one) = self.selected_or_say() else { return };
        match order(&one, self.name_of(&one)) {
            Some((question, order)) => self.mode = Mode::Confirming { question, order },
            None => self.message = format!("{} has weight {} already", one.name, one.weight),
        }
    }

    /// What an order calls a backend: its name, unless others have that too.
    fn name_of(&self, one: &Backend) -> String {
        let of_that_name = self.history.now.backends.iter().filter(|other| other.name == one.name);
        let is_alone = of_that_name.clone().all(|other| other.id == one.id);
        if is_alone { one.name.clone() } else { one.address.clone() }
    }
}

fn weigh(one: &Backend, name: String, weight: u32) -> Option<(String, OperatorCommand)> {
    let question = format!("weight of {}: {weight} rather than {}", one.name, one.weight);
    (weight != one.weight).then_some((question, OperatorCommand::Weight(name, weight)))
}

#[cfg(test)]
mod tests;
