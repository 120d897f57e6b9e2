//! The pictures in docs/pictures: `cargo xtask pictures`. What a real terminal shows, drawn as SVG.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anstyle_svg::Term;
use samport_tests::daemon::samport_binary;
use samport_tests::load::{Connection, Load};
use samport_tests::screen::Screen;
use samport_tests::served::Served;
use samport_tests::{Lab, Namespace, PATIENCE};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pictures");
/// Enough for the sparkline to show something.
const WATCHED: Duration = Duration::from_secs(25);
const TOP: (u16, u16) = (104, 22);
const DEMO: (u16, u16) = (104, 60);

fn main() -> anyhow::Result<()> {
    fs::create_dir_all(FOLDER)?;
    keep("top", &top())?;
    keep("demo", &demo())
}

fn keep(name: &str, shown: &str) -> anyhow::Result<()> {
    let path = Path::new(FOLDER).join(format!("{name}.svg"));
    let lines: Vec<_> = shown.trim_end().lines().map(str::trim_end).collect();
    fs::write(&path, Term::new().render_svg(&lines.join("\n")))?;
    println!("{}", path.display());
    Ok(())
}

/// Four backends under load, one of which drains.
fn top() -> String {
    let lab = Lab::builder().backends(4).build().expect("build a lab");
    let served = Served::start(lab, &["--drain", "120"]);
    let front = served.fronts()[0];
    let open = || Connection::open(front).expect("connect");
    let held = served.lab.client().run(|| (0..30).map(|_| open()).collect::<Vec<_>>());
    let load = Load::start(served.lab.client(), front, 2);
    assert!(load.wait_for_more(500, PATIENCE), "the load stands still");
    let screen = Screen::open(served.lab.host(), TOP);
    screen.enter(&format!("{} top --interval 500ms", samport_binary().display()));
    screen.wait_for("q quit");
    std::thread::sleep(WATCHED / 2);
    served.order(&["drain", "web-3"]);
    std::thread::sleep(WATCHED / 2);
    let shown = screen.coloured();
    screen.press("q");
    load.stop().assert_no_failure();
    drop(held);
    shown
}

fn demo() -> String {
    let namespace = Namespace::new("picture").expect("make a namespace");
    let screen = Screen::open(&namespace, DEMO);
    screen.enter(&format!("clear; {} demo", samport_binary().display()));
    screen.wait_for("nothing left behind");
    screen.coloured()
}
