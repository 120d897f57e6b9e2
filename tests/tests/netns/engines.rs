//! Engines that hang, answer garbage, break off or drip: the last good state stays, and what is new is served when the
//! engine is well again.

use samport_tests::fake_engine::Behavior;
use samport_tests::load::Load;
use samport_tests::{TIMEOUT, eventually};

use crate::limits::Fixture;

/// Whatever it answers, and whether it breaks off the events or only answers questions badly: who serves goes on, and
/// the next container is served when it is well.
#[test]
fn an_engine_that_answers_badly_changes_nothing_and_is_followed_again() {
    let fixture = Fixture::start(3, &[]);
    fixture.engine.runs(fixture.container("web", 0, 80, &[]));
    fixture.wait_for(80, 1);
    let load = Load::start(fixture.lab.client(), fixture.lab.front(80), 1);
    for (n, behavior) in Behavior::BAD.into_iter().enumerate() {
        // It is asked about a container that starts meanwhile.
        fixture.engine.answer(behavior);
        let bad = fixture.engine.bad_answers();
        let name = format!("asked-{n}");
        let mark = fixture.daemon.mark();
        fixture.engine.runs(fixture.container(&name, 1, 81, &[]));
        eventually(&format!("{behavior:?}: it is asked"), || {
            (fixture.engine.bad_answers() > bad).then_some(())
        });
        fixture.engine.answer(Behavior::Well);
        fixture.daemon.wait_for_line_after(mark, &format!("+ {name} "), TIMEOUT);

        // It ends the events, and answers badly to who comes back.
        let bad = fixture.engine.bad_answers();
        fixture.engine.answer(behavior);
        let mark = fixture.daemon.mark();
        fixture.engine.end_events();
        fixture.daemon.wait_for_line_after(mark, "lost Docker", TIMEOUT);
        eventually(&format!("{behavior:?}: it is asked again"), || {
            (fixture.engine.bad_answers() > bad).then_some(())
        });
        assert!(fixture.is_served(80), "{behavior:?}");
        fixture.engine.loses(&name);
        let other = format!("found-{n}");
        fixture.engine.has([fixture.container(&other, 2, 81, &[])]);
        fixture.engine.answer(Behavior::Well);
        for line in ["is back".to_owned(), format!("+ {other} "), format!("- {name} ")] {
            fixture.daemon.wait_for_line_after(mark, &line, TIMEOUT);
        }
        let mark = fixture.daemon.mark();
        fixture.engine.ends(&other);
        fixture.daemon.wait_for_line_after(mark, &format!("- {other} "), TIMEOUT);
    }
    load.stop().assert_no_failure();
    let lines = fixture.daemon.lines();
    assert!(lines.iter().all(|line| !line.text.contains("panicked")), "{lines:?}");
}

/// A slow answer is an answer.
#[test]
fn an_engine_that_drips_is_waited_for() {
    let fixture = Fixture::start(2, &[]);
    fixture.engine.runs(fixture.container("web", 0, 80, &[]));
    fixture.wait_for(80, 1);
    fixture.engine.answer(Behavior::Drip);
    fixture.engine.runs(fixture.container("slow", 1, 80, &[]));
    fixture.daemon.wait_for_line("+ slow ", TIMEOUT);
    fixture.wait_for(80, 2);
}

/// One answer that never comes delays nobody else's.
#[test]
fn a_question_that_hangs_keeps_no_other_container_waiting() {
    let fixture = Fixture::start(2, &[]);
    fixture.engine.runs(fixture.container("web", 0, 80, &[]));
    fixture.wait_for(80, 1);
    fixture.engine.hang_on("hangs");
    for n in 0..3 {
        fixture.engine.runs(fixture.container(&format!("hangs-{n}"), 0, 82, &[]));
    }
    fixture.engine.runs(fixture.container("next", 1, 80, &[]));
    fixture.daemon.wait_for_line("+ next ", TIMEOUT);
    fixture.wait_for(80, 2);
    fixture.engine.answer(Behavior::Well);
    fixture.engine.hang_on("-");
    for n in 0..3 {
        fixture.daemon.wait_for_line(&format!("+ hangs-{n} "), 2 * TIMEOUT);
    }
}
