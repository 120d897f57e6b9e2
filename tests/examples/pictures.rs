//! The pictures in docs/pictures: `cargo xtask pictures`. What a real terminal shows, drawn as SVG.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anstyle_svg::Term;
use samport_tests::daemon::{Backends, Daemon, samport, samport_binary};
use samport_tests::load::{Connection, Load};
use samport_tests::screen::Screen;
use samport_tests::{Backend, Lab, Namespace};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pictures");
/// What clients dial, and where the servers listen.
const SERVICES: [(u16, u16); 2] = [(80, 9090), (8080, 9091)];
/// Seconds of more and of less load, over and over: enough for the sparkline to show something.
const WATCHED: [u64; 4] = [4, 2, 5, 3];
const TOP: (u16, u16) = (110, 20);
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

/// The servers, each behind both ports.
fn listing(lab: &Lab) -> String {
    let entry = |(listen, target): (u16, u16)| {
        let entry = move |backend: &Backend| {
            let (name, address) = (backend.name(), backend.v4(target));
            format!("[[backend]]\nname = {name:?}\naddress = \"{address}\"\nlisten = {listen}\n")
        };
        lab.backends().iter().map(entry).collect::<Vec<_>>().concat()
    };
    SERVICES.map(entry).concat()
}

/// Four backends of two services under load that comes and goes; one of them drains.
fn top() -> String {
    let lab = Lab::builder().backends(4).build().expect("build a lab");
    let serve = |port| lab.serve(port).expect("start the servers");
    let _servers = SERVICES.map(|(_, target)| serve(target));
    let file = Backends::none();
    file.write_text(&listing(&lab));
    let args = ["-i", "eth0", "-p", "80", "-p", "8080", "--file", file.path(), "--drain", "120"];
    let _daemon = Daemon::start(&lab, &args);
    let fronts = SERVICES.map(|(port, _)| lab.front(port));
    let open = || Connection::open(fronts[0]).expect("connect");
    let _held = lab.client().run(|| (0..30).map(|_| open()).collect::<Vec<_>>());
    let screen = Screen::open(lab.host(), TOP);
    screen.enter(&format!("{} top --interval 500ms", samport_binary().display()));
    screen.wait_for("q quit");
    for seconds in WATCHED {
        let loads = fronts.map(|front| Load::start(lab.client(), front, 1));
        thread::sleep(Duration::from_secs(seconds));
        let more = Load::start(lab.client(), fronts[0], 2);
        thread::sleep(Duration::from_secs(seconds));
        for load in loads.into_iter().chain([more]) {
            load.stop().assert_no_failure();
        }
        if seconds == WATCHED[1] {
            let drained = samport(lab.host(), &["drain", "web-3"]);
            assert!(drained.status.success(), "{drained:?}");
        }
    }
    let _load = Load::start(lab.client(), fronts[0], 1);
    thread::sleep(Duration::from_secs(1));
    let shown = screen.coloured();
    screen.press("q");
    shown
}

fn demo() -> String {
    let namespace = Namespace::new("picture").expect("make a namespace");
    let screen = Screen::open(&namespace, DEMO);
    screen.enter(&format!("clear; {} demo", samport_binary().display()));
    screen.wait_for("nothing left behind");
    let shown = screen.coloured();
    // Without the shell's next prompt.
    shown.trim_end().rsplit_once('\n').map_or_else(String::new, |(before, _)| before.to_owned())
}
