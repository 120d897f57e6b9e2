//! Engines that hang, answer garbage, break off or drip: the last good state stays, and what is new is served when the
//! engine is well again.

use samport_tests::fake_engine::Manner;
use samport_tests::load::Load;
use samport_tests::{PATIENCE, eventually};

use crate::limits::Scene;

/// Whatever it answers, and whether it breaks off the events or only answers questions badly: who serves goes on, and
/// the next container is served when it is well.
#[test]
fn an_engine_that_answers_badly_changes_nothing_and_is_followed_again() {
    let scene = Scene::start(3, &[]);
    scene.engine.runs(scene.container("web", 0, 80, &[]));
    scene.wait_for(80, 1);
    let load = Load::start(scene.lab.client(), scene.lab.front(80), 1);
    for (n, manner) in Manner::BAD.into_iter().enumerate() {
        // It is asked about a container that starts meanwhile.
        scene.engine.answer(manner);
        let bad = scene.engine.bad_answers();
        let name = format!("asked-{n}");
        let mark = scene.daemon.mark();
        scene.engine.runs(scene.container(&name, 1, 81, &[]));
        eventually(&format!("{manner:?}: it is asked"), || {
            (scene.engine.bad_answers() > bad).then_some(())
        });
        scene.engine.answer(Manner::Well);
        scene.daemon.wait_for_line_after(mark, &format!("+ {name} "), PATIENCE);

        // It ends the events, and answers badly to who comes back.
        let bad = scene.engine.bad_answers();
        scene.engine.answer(manner);
        let mark = scene.daemon.mark();
        scene.engine.end_events();
        scene.daemon.wait_for_line_after(mark, "lost Docker", PATIENCE);
        eventually(&format!("{manner:?}: it is asked again"), || {
            (scene.engine.bad_answers() > bad).then_some(())
        });
        assert!(scene.is_served(80), "{manner:?}");
        scene.engine.loses(&name);
        let other = format!("found-{n}");
        scene.engine.has([scene.container(&other, 2, 81, &[])]);
        scene.engine.answer(Manner::Well);
        for line in ["is back".to_owned(), format!("+ {other} "), format!("- {name} ")] {
            scene.daemon.wait_for_line_after(mark, &line, PATIENCE);
        }
        let mark = scene.daemon.mark();
        scene.engine.ends(&other);
        scene.daemon.wait_for_line_after(mark, &format!("- {other} "), PATIENCE);
    }
    load.stop().assert_no_failure();
    let lines = scene.daemon.lines();
    assert!(lines.iter().all(|line| !line.text.contains("panicked")), "{lines:?}");
}

/// A slow answer is an answer.
#[test]
fn an_engine_that_drips_is_waited_for() {
    let scene = Scene::start(2, &[]);
    scene.engine.runs(scene.container("web", 0, 80, &[]));
    scene.wait_for(80, 1);
    scene.engine.answer(Manner::Drip);
    scene.engine.runs(scene.container("slow", 1, 80, &[]));
    scene.daemon.wait_for_line("+ slow ", PATIENCE);
    scene.wait_for(80, 2);
}

/// One answer that never comes delays nobody else's.
#[test]
fn a_question_that_hangs_keeps_no_other_container_waiting() {
    let scene = Scene::start(2, &[]);
    scene.engine.runs(scene.container("web", 0, 80, &[]));
    scene.wait_for(80, 1);
    scene.engine.hang_on("hangs");
    for n in 0..3 {
        scene.engine.runs(scene.container(&format!("hangs-{n}"), 0, 82, &[]));
    }
    scene.engine.runs(scene.container("next", 1, 80, &[]));
    scene.daemon.wait_for_line("+ next ", PATIENCE);
    scene.wait_for(80, 2);
    scene.engine.answer(Manner::Well);
    scene.engine.hang_on("-");
    for n in 0..3 {
        scene.daemon.wait_for_line(&format!("+ hangs-{n} "), 2 * PATIENCE);
    }
}
