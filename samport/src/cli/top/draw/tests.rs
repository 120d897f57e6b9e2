use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent};

use super::super::history::Documents;
use super::super::samples::{backend, documents};
use super::*;
use crate::model::snapshots::Pages;

fn drawn(screen: &Screen, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, screen)).unwrap();
    terminal.backend().buffer().clone()
}

fn lines(screen: &Screen, width: u16, height: u16) -> Vec<String> {
    let buffer = drawn(screen, width, height);
    let lines = buffer.content().chunks(usize::from(width));
    let text = lines.map(|line| line.iter().map(ratatui::buffer::Cell::symbol).collect::<String>());
    text.map(|line| line.trim_end().to_owned()).collect()
}

fn line<'a>(lines: &'a [String], part: &str) -> &'a str {
    let found = lines.iter().find(|line| line.contains(part));
    found.unwrap_or_else(|| panic!("no {part:?} in\n{}", lines.join("\n")))
}

/// A draining one among active ones, after two seconds of 10 connections a second.
fn sample() -> Documents {
    let draining =
        Backend { state: "draining".into(), drain_left_ms: Some(18_100), ..backend("web-2", 90) };
    documents(&[backend("web-1", 120), draining, backend("web-3", 120)])
}

fn screen() -> Screen {
    let before = [backend("web-1", 110), backend("web-2", 90), backend("web-3", 110)];
    let mut screen = Screen::new(documents(&before), Duration::ZERO, true);
    screen.see(Ok(sample()), Duration::from_secs(2));
    screen
}

fn press(screen: &mut Screen, key: char) {
    let _ = screen.press(KeyEvent::from(KeyCode::Char(key)));
}

#[test]
fn a_usual_screen_has_everything() {
    let lines = lines(&screen(), 120, 30);
    for (part, also) in [
        ("samport eth0:80@4026531840", &["10.0 conn/s", "7 drops", "33 of 131072 flows"][..]),
        ("pid 4242", &["80/tcp on eth0", "tcx", "32.0 MiB"]),
        ("shop/web", &["80/tcp", "random", "2/3 (1 drain)", "33", "10.0", "█"]),
        ("web-1", &["active", "50.0/49.9 %", "12", "5.0", "41/180 µs", "172.18.0.2:8080"]),
        ("web-2", &["draining (19 s left)", "0.0"]),
        ("not-allowed (dropped)", &["7"]),
        ("web-2 on 80/tcp active → draining", &["0s"]),
        ("q quit", &["d drain", "u undrain", "w weigh", "? help"]),
    ] {
        let line = line(&lines, part);
        for word in also {
            assert!(line.contains(word), "no {word:?} in {line:?}");
        }
    }
}

#[test]
fn how_many_containers_are_left_out_is_on_the_screen() {
    let said = "2 left out (`samport status` says why)";
    let mut screen = screen();
    assert!(lines(&screen, 120, 30).iter().all(|line| !line.contains("left out")));
    let mut documents = sample();
    documents.instance.left_out = vec!["web-8 is left out".into(), "web-9 is left out".into()];
    screen.see(Ok(documents), Duration::from_secs(3));
    let lines = lines(&screen, 120, 30);
    assert!(line(&lines, "pid 4242").ends_with(said), "{}", lines.join("\n"));
}

#[test]
fn eighty_columns_are_enough_to_steer() {
    let lines = lines(&screen(), 80, 24);
    let line = line(&lines, "draining (19 s left)");
    assert!(line.contains("web-2") && line.contains("50.0/49.9 %"), "{}", lines.join("\n"));
    assert!(lines[23].contains("q quit") && lines[23].contains("s sort"), "{}", lines[23]);
}

#[test]
fn whatever_does_not_fit_is_left_out_and_nothing_panics() {
    let mut screen = screen();
    for help in [false, true] {
        if help {
            press(&mut screen, '?');
        }
        for (width, height) in (0..40).map(|n| (n * 3, n)).chain((0..40).map(|n| (n, 40 - n))) {
            // There is no terminal without any cell.
            let (width, height) = (width.max(1), height.max(1));
            let _ = drawn(&screen, width, height);
        }
    }
    let lines = lines(&self::screen(), 40, 7);
    for (name, state) in [("web-1", "active"), ("web-2", "draining"), ("web-3", "active")] {
        assert!(line(&lines, name).contains(state), "{lines:?}");
    }
}

#[test]
fn a_long_list_is_scrolled_to_what_is_selected() {
    let many: Vec<_> = (10..90).map(|number| backend(&format!("web-{number}"), 0)).collect();
    let mut screen = Screen::new(documents(&many), Duration::ZERO, false);
    press(&mut screen, 'G');
    let lines = lines(&screen, 80, 24);
    assert!(line(&lines, "web-89").contains("active"));
    assert!(lines.iter().all(|line| !line.contains("web-10 ")), "{lines:?}");
}

#[test]
fn states_have_colours_unless_there_are_to_be_none() {
    let colours = |screen: &Screen| -> Vec<Color> {
        let buffer = drawn(screen, 100, 30);
        let mut found: Vec<_> = Vec::new();
        for cell in buffer.content() {
            if cell.fg != Color::Reset && !found.contains(&cell.fg) {
                found.push(cell.fg);
            }
        }
        found
    };
    let mut screen = screen();
    let found = colours(&screen);
    for colour in [Color::Green, Color::Yellow, Color::Red, Color::Cyan] {
        assert!(found.contains(&colour), "{found:?}");
    }
    screen.is_coloured = false;
    assert_eq!(colours(&screen), []);
    // The selection is seen all the same.
    let buffer = drawn(&screen, 100, 30);
    assert!(buffer.content().iter().any(|cell| cell.modifier.contains(Modifier::REVERSED)));
}

#[test]
fn what_is_asked_stands_in_the_last_line() {
    let mut screen = screen();
    press(&mut screen, 'd');
    assert!(lines(&screen, 80, 24)[23].starts_with("drain web-1: no new connections for it? y/n"));
    press(&mut screen, 'n');
    assert_eq!(lines(&screen, 80, 24)[23], "left as it was");
    press(&mut screen, 'w');
    press(&mut screen, '3');
    assert!(lines(&screen, 80, 24)[23].starts_with("weight of web-1: 3_"));
}

#[test]
fn a_samport_that_does_not_answer_is_told_of_at_any_height() {
    let mut screen = screen();
    screen.see(Err("it went".into()), Duration::from_secs(12));
    for height in [5, 24] {
        let lines = lines(&screen, 80, height);
        let said = "no answer, trying again; this is from 10s ago (it went)";
        assert_eq!(line(&lines, "no answer"), said);
        // What was known is still there.
        assert!(line(&lines, "web-1").contains("active"));
    }
}

#[test]
fn without_backends_it_says_so() {
    let screen = Screen::new(documents(&[]), Duration::ZERO, true);
    assert!(lines(&screen, 80, 24).iter().any(|line| line == "no backend yet"));
}

#[test]
fn help_explains_every_key() {
    let mut screen = screen();
    press(&mut screen, '?');
    let lines = lines(&screen, 100, 30);
    for part in
        ["drain it", "undrain it", "set its weight", "sort by", "quit; samport keeps running"]
    {
        line(&lines, part);
    }
}

#[test]
fn the_screen_is_as_it_was() {
    let mut pages = Pages::default();
    let mut screen = screen();
    pages.add("samport top, 120 columns", &lines(&screen, 120, 30).join("\n"));
    pages.add("samport top, 80 columns", &lines(&screen, 80, 24).join("\n"));
    press(&mut screen, 'd');
    pages.add("after d", &lines(&screen, 80, 24)[23]);
    press(&mut screen, 'n');
    press(&mut screen, '?');
    pages.add("after ?", &lines(&screen, 80, 24).join("\n"));
    pages.assert("top");
}
