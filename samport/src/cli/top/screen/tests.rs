use super::super::samples::{backend, documents};
use super::*;

fn screen(backends: &[Backend]) -> Screen {
    Screen::new(documents(backends), Duration::ZERO, false)
}

fn three() -> Screen {
    screen(&[backend("web-1", 10), backend("web-2", 300), backend("web-3", 20)])
}

/// Presses keys one after the other: what the last one has led to.
fn press(screen: &mut Screen, keys: &str) -> Option<Act> {
    let code = |key| match key {
        '\n' => KeyCode::Enter,
        '\x1b' => KeyCode::Esc,
        '\x08' => KeyCode::Backspace,
        other => KeyCode::Char(other),
    };
    keys.chars().map(|key| screen.press(KeyEvent::from(code(key)))).last().flatten()
}

fn selected(screen: &Screen) -> &str {
    screen.selected().map_or("none", |one| &one.name)
}

#[test]
fn the_selection_moves_and_stays_on_the_screen() {
    let mut screen = three();
    assert_eq!(selected(&screen), "web-1");
    for (keys, name) in [
        ("j", "web-2"),
        ("jjj", "web-3"),
        ("k", "web-2"),
        ("kkk", "web-1"),
        ("G", "web-3"),
        ("g", "web-1"),
    ] {
        press(&mut screen, keys);
        assert_eq!(selected(&screen), name, "{keys}");
    }
    screen.press(KeyEvent::from(KeyCode::Down));
    assert_eq!(selected(&screen), "web-2");
}

#[test]
fn the_selection_follows_its_backend_and_goes_to_who_takes_its_place() {
    let mut screen = three();
    press(&mut screen, "j");
    let more = [backend("web-0", 0), backend("web-1", 0), backend("web-2", 0), backend("web-3", 0)];
    screen.see(Ok(documents(&more)), Duration::from_secs(1));
    assert_eq!((selected(&screen), screen.place_of_selected()), ("web-2", Some(2)));
    screen.see(Ok(documents(&more[..2])), Duration::from_secs(2));
    assert_eq!(selected(&screen), "web-1");
    screen.see(Ok(documents(&[])), Duration::from_secs(3));
    assert_eq!(selected(&screen), "none");
    assert_eq!(press(&mut screen, "d"), None);
    assert_eq!((&screen.mode, &*screen.message), (&Mode::Watching, "no backend is selected"));
    screen.see(Ok(documents(&more)), Duration::from_secs(4));
    assert_ne!(selected(&screen), "none");
}

#[test]
fn nothing_is_ordered_without_a_yes() {
    let mut screen = three();
    assert_eq!(press(&mut screen, "d"), None);
    let Mode::Confirming { question, .. } = &screen.mode else { panic!("{:?}", screen.mode) };
    assert!(question.contains("drain web-1"), "{question}");
    // What is no answer changes nothing.
    assert_eq!(press(&mut screen, "q\njd"), None);
    assert_eq!(
        press(&mut screen, "y"),
        Some(Act::CarryOut(OperatorCommand::Drain("web-1".into())))
    );
    assert_eq!(screen.mode, Mode::Watching);
    for no in ["dn", "un", "d\x1b", "+n", "w7\nn"] {
        assert_eq!(press(&mut screen, no), None);
        assert_eq!((&screen.mode, &*screen.message), (&Mode::Watching, "left as it was"), "{no:?}");
        assert_eq!(press(&mut screen, "y"), None);
    }
    assert_eq!(
        press(&mut screen, "juy"),
        Some(Act::CarryOut(OperatorCommand::Undrain("web-2".into())))
    );
}

#[test]
fn a_weight_is_asked_for_or_changed_by_one() {
    let order = |weight| Some(Act::CarryOut(OperatorCommand::Weight("web-1".into(), weight)));
    let mut screen = three();
    assert_eq!(press(&mut screen, "+y"), order(2));
    assert_eq!(press(&mut screen, "-y"), order(0));
    assert_eq!(press(&mut screen, "w1x\x085\ny"), order(5));
    // Its own is no change, and none is no number.
    for (keys, said) in
        [("w1\n", "weight 1 already"), ("w\n", "0 to 4294967295"), ("w9999999999\n", "0 to")]
    {
        assert_eq!(press(&mut screen, keys), None);
        assert!(screen.mode == Mode::Watching && screen.message.contains(said), "{screen:?}");
    }
    let mut screen = self::screen(&[Backend { weight: 0, ..backend("web-1", 0) }]);
    press(&mut screen, "-");
    assert!(screen.message.contains("weight 0 already"), "{}", screen.message);
}

#[test]
fn a_name_that_several_containers_have_is_not_used() {
    let other =
        Backend { id: "other".into(), address: "172.18.0.9:80".into(), ..backend("web-1", 0) };
    let mut screen = screen(&[backend("web-1", 0), other]);
    let address = "172.18.0.9:80".to_owned();
    assert_eq!(press(&mut screen, "jdy"), Some(Act::CarryOut(OperatorCommand::Drain(address))));
}

#[test]
fn sorting_goes_round_and_keeps_the_selection() {
    let mut screen = three();
    let counts = [backend("web-1", 20), backend("web-2", 310), backend("web-3", 90)];
    screen.see(Ok(documents(&counts)), Duration::from_secs(1));
    for (sort, first) in [
        (Sort::Rate, "web-3"),
        (Sort::Flows, "web-2"),
        (Sort::Share, "web-1"),
        (Sort::Time, "web-1"),
        (Sort::Service, "web-1"),
    ] {
        press(&mut screen, "s");
        assert_eq!((screen.sort, &*screen.backends()[0].name), (sort, first));
        assert_eq!(selected(&screen), "web-1");
    }
}

#[test]
fn help_ends_with_any_key_and_leaving_has_two() {
    let mut screen = three();
    press(&mut screen, "?");
    assert_eq!(screen.mode, Mode::Help);
    assert_eq!(press(&mut screen, "q"), None);
    assert_eq!(screen.mode, Mode::Watching);
    assert_eq!(press(&mut screen, "q"), Some(Act::Quit));
    // Also while something is asked.
    press(&mut screen, "d");
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(screen.press(interrupt), Some(Act::Quit));
}

#[test]
fn trouble_stays_until_there_is_an_answer() {
    let mut screen = three();
    screen.see(Err("no samport answers".into()), Duration::from_secs(5));
    assert_eq!(screen.trouble.as_deref(), Some("no samport answers"));
    // What it has said is still shown.
    assert_eq!((screen.backends().len(), screen.history.at), (3, Duration::ZERO));
    screen.see(Ok(documents(&[])), Duration::from_secs(6));
    assert_eq!(screen.trouble, None);
}
