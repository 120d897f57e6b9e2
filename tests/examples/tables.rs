//! How long it takes until the kernel does without one of many backends: `cargo run -p samport-tests
//! --example tables [BACKENDS]`, as root.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use samport::dataplane::{Dataplane, Options};
use samport::model::State;
use samport::model::ports::Listen;
use samport::plan::{Actual, BackendKey, Change, Desired, Policy, Route, Share, plan};
use samport::system::instance::Instance;
use samport_common::choose::Balance;
use samport_common::layout::{DeviceSet, MAX_BACKENDS, Scope};

const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const ROUNDS: u32 = 31;

fn main() -> anyhow::Result<()> {
    let backends = std::env::args().nth(1).map_or(Ok(10_000), |text| text.parse())?;
    println!("{backends} backends, one goes: the best of {ROUNDS} times");
    let instance = Instance::claim(&format!("tables-{}", std::process::id()))?;
    for balance in Balance::ALL {
        let mut kernel = Dataplane::open(&instance, options())?;
        let mut actual = Actual::with_room_for(MAX_BACKENDS);
        let mut desired = desired(backends, balance);
        reach(&desired, &mut actual, &mut kernel)?;
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let gone = desired.backends.pop_last();
            rounds.push(reach(&desired, &mut actual, &mut kernel)?);
            desired.backends.extend(gone);
            reach(&desired, &mut actual, &mut kernel)?;
        }
        rounds.sort_by_key(|(planned, made)| *planned + *made);
        let (planned, made) = rounds[0];
        println!("{:12} planned in {planned:>9.1?}, made in {made:>9.1?}", balance.name());
    }
    Ok(())
}

/// Plans and carries out, and says how long either took.
fn reach(
    desired: &Desired,
    actual: &mut Actual,
    kernel: &mut Dataplane,
) -> anyhow::Result<(Duration, Duration)> {
    let start = Instant::now();
    let changes = plan(desired, actual)?;
    let planned = start.elapsed();
    let start = Instant::now();
    for change in &changes {
        // No packet comes: nothing is attached, and nothing has to be waited for.
        if !matches!(change, Change::Attach(..) | Change::Detach(..) | Change::Settle) {
            kernel.apply(change)?;
        }
        actual.record(change);
    }
    Ok((planned, start.elapsed()))
}

fn desired(backends: u32, balance: Balance) -> Desired {
    let listen = Listen::tcp(80);
    let share = Share {
        name: "web".to_owned(),
        weight: 1,
        group: None,
        state: State::Active,
        answers_on: DeviceSet::NONE,
        leaves_by: Vec::new(),
        route_back: None,
    };
    let key = |number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        let endpoint = ([10, a, b, c], 8_080).into();
        BackendKey { listen, id: format!("web-{number}"), endpoint, route: Route::Stack }
    };
    Desired {
        frontends: [(listen, [(VIP, Scope::External)].into())].into(),
        policies: [(listen, Policy { balance, ..Policy::default() })].into(),
        backends: (0..backends).map(|number| (key(number), share.clone())).collect(),
        ..Desired::default()
    }
}

fn options() -> Options {
    Options { backends: MAX_BACKENDS, local: false, ..Options::default() }
}
