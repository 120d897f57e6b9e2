//! Rolling replacement by the commands of docs/guides/rolling.md.

use std::thread;

use samport_tests::daemon::samport;
use samport_tests::docker::Dockerd;
use samport_tests::number_in;

use crate::{LABEL, engine, load, start_samport, wait_for_more, wait_until_serving};

/// Containers that serve at a time, and that are replaced together.
const AT_ONCE: u32 = 4;
/// How many are replaced, unless `SAMPORT_REPLACEMENTS` says so: 1000 is for those who have the time.
const REPLACEMENTS: u32 = 100;

fn replacements() -> u32 {
    number_in("SAMPORT_REPLACEMENTS").unwrap_or(REPLACEMENTS)
}

fn names(generation: u32) -> [String; AT_ONCE as usize] {
    [1, 2, 3, 4].map(|number| format!("v{generation}-{number}"))
}

/// Does something for each container, all at the same time.
fn each(names: &[String], work: impl Fn(&str) + Sync) {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = names.iter().map(|name| scope.spawn(move || work(name))).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

/// Runs a samport command beside the daemon; panics if it fails.
pub fn command(docker: &Dockerd, args: &[&str]) {
    let output = samport(docker.lab().host(), args);
    assert!(output.status.success(), "samport {args:?}: {output:?}");
}

/// Case 62: start, wait until they are healthy, drain, stop. The containers' server ends at once when
/// it is told to stop, with whatever it has: what saves it is the recipe.
#[test]
fn replacing_containers_by_the_recipe_fails_no_request() {
    let docker = engine();
    let run = |name: &str| docker.run_server(name, &[&LABEL[..], &["--rm"]].concat());
    let samport = start_samport(&docker, &["-p", "80:9090", "--drain", "1s"]);
    each(&names(0), run);
    for name in names(0) {
        wait_until_serving(&samport, 0, &name);
    }
    let load = load(&docker);
    wait_for_more(&load);
    let generations = replacements().div_ceil(AT_ONCE);
    let both = (2 * AT_ONCE).to_string();
    for generation in 1..=generations {
        each(&names(generation), run);
        command(&docker, &["wait", "--healthy", &both, "80"]);
        each(&names(generation - 1), |name| command(&docker, &["drain", name, "--wait"]));
        each(&names(generation - 1), |name| drop(docker.cli(&["stop", "-t", "8", name])));
    }
    wait_for_more(&load);
    let report = load.stop();
    println!("{} replacements: {report}", generations * AT_ONCE);
    report.assert_no_failure();
    let answered = report.tally.iter().count();
    assert_eq!(answered, (generations as usize + 1) * AT_ONCE as usize, "{}", report.tally);
    samport.stop();
}
