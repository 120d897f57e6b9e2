//! The only program in the test containers: the lab's own server. Compiled by `samport-tests`.

#[path = "../../samport/src/lab/server/mod.rs"]
mod server;

fn main() {
    server::run_from_environment()
}
