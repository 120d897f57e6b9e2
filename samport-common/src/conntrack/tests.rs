//! The states, one by one and all of them.

use super::*;

const SYN: Flags = Flags(Flags::SYN);
const SYN_ACK: Flags = Flags(Flags::SYN | Flags::ACK);
const ACK: Flags = Flags(Flags::ACK);
const FIN: Flags = Flags(Flags::FIN | Flags::ACK);
const RST: Flags = Flags(Flags::RST);

fn known(state: State, idle_ticks: u32, backend_serves: bool) -> Known {
    let timeout = Timeouts::new(&Seconds::DEFAULT).of(state);
    Known { state, over: state.is_over(idle_ticks, timeout), backend_serves }
}

fn run(steps: &[(Flags, Sender)]) -> State {
    steps.iter().fold(State::SynSent, |state, (flags, sender)| step(state, *flags, *sender))
}

#[test]
fn a_connection_from_handshake_to_both_fins() {
    use Sender::{Backend, Client};
    assert_eq!(run(&[(SYN_ACK, Backend)]), State::SynReceived);
    assert_eq!(run(&[(SYN_ACK, Backend), (ACK, Client)]), State::Established);
    let open = [(SYN_ACK, Backend), (ACK, Client)];
    assert_eq!(run(&[&open[..], &[(FIN, Client)]].concat()), State::ClientFinished);
    assert_eq!(run(&[&open[..], &[(FIN, Backend)]].concat()), State::BackendFinished);
    for order in [[(FIN, Client), (FIN, Backend)], [(FIN, Backend), (FIN, Client)]] {
        assert_eq!(run(&[&open[..], &order].concat()), State::Finished);
    }
}

/// Case 28: RST shortens an entry's life; a spurious one mid-stream does not end the connection.
#[test]
fn a_spurious_reset_does_not_end_a_connection_that_goes_on() {
    assert_eq!(step(State::Established, RST, Sender::Client), State::Reset);
    let timeouts = Timeouts::new(&Seconds::DEFAULT);
    assert!(timeouts.of(State::Reset) < timeouts.of(State::Established));
    assert_eq!(
        decide(Some(known(State::Reset, 0, true)), Protocol::Tcp, ACK, Openers::First),
        Decision::Stay(State::Established)
    );
}

/// The short way and the long one say the same, of every state and all flags.
#[test]
fn what_goes_on_stays_with_its_backend() {
    let mut going_on = 0;
    for (state, bits) in State::ALL.into_iter().flat_map(|s| (0..=u8::MAX).map(move |b| (s, b))) {
        let flags = Flags(bits);
        if !goes_on(state, flags) {
            continue;
        }
        going_on += 1;
        let protocol = if state == State::Answered { Protocol::Udp } else { Protocol::Tcp };
        for over in [false, true] {
            // A datagram on a flow that is over begins another: that is asked beside.
            if protocol == Protocol::Tcp || !over {
                let known = Known { state, over, backend_serves: true };
                let decided = decide(Some(known), protocol, flags, Openers::First);
                let next = step(state, flags, Sender::Client);
                assert_eq!(decided, Decision::Stay(next), "{state:?}, flags {bits:#04x}");
            }
        }
        assert!(!crate::failover::refuses(state, flags), "{state:?}, flags {bits:#04x}");
    }
    assert_eq!(going_on, 7 * 128, "seven states, and the flags without SYN");
}

#[test]
fn only_a_pure_syn_opens_a_flow() {
    for bits in 0..=u8::MAX {
        let opens = bits & (Flags::SYN | Flags::ACK | Flags::FIN | Flags::RST) == Flags::SYN;
        let expected =
            if opens { Decision::Choose } else { Decision::Refuse(Verdict::MidFlowMiss) };
        assert_eq!(
            decide(None, Protocol::Tcp, Flags(bits), Openers::First),
            expected,
            "flags {bits:#04x}"
        );
    }
}

/// Where connections are found by their hash, one that was forgotten goes on where it was.
#[test]
fn the_middle_of_a_forgotten_connection_opens_a_flow_where_its_hash_finds_it() {
    for bits in 0..=u8::MAX {
        let flags = Flags(bits);
        let decision = decide(None, Protocol::Tcp, flags, Openers::Any);
        assert_eq!(decision == Decision::Choose, !flags.rst(), "{flags:?}");
        let first = State::first(Protocol::Tcp, flags);
        assert_eq!(first == State::SynSent, flags.opens());
        assert!(first == State::SynSent || first == State::Established);
    }
}

#[test]
fn a_syn_again_stays_until_the_connection_is_over() {
    for state in State::ALL {
        let over = !state.is_open();
        let decision = decide(Some(known(state, 0, true)), Protocol::Tcp, SYN, Openers::First);
        assert_eq!(decision == Decision::Choose, over, "{state:?}: {decision:?}");
        assert_eq!(
            decide(Some(known(state, 100_000, true)), Protocol::Tcp, SYN, Openers::First),
            Decision::Choose,
            "{state:?}"
        );
    }
}

#[test]
fn a_flow_without_its_backend_starts_anew_or_is_refused() {
    for state in State::ALL {
        assert_eq!(
            decide(Some(known(state, 0, false)), Protocol::Tcp, SYN, Openers::First),
            Decision::Choose
        );
        let refused = decide(Some(known(state, 0, false)), Protocol::Tcp, ACK, Openers::First);
        assert!(matches!(refused, Decision::Refuse(_)), "{state:?}: {refused:?}");
    }
}

/// Case 27: a SYN-only entry expires in 20 s. Case 31: 2 h of silence do not end a connection.
#[test]
fn entries_expire_by_their_state() {
    let over = |state: State, seconds: u32| {
        let ticks = Timeouts::ticks(seconds);
        state.is_over(ticks, Timeouts::new(&Seconds::DEFAULT).of(state))
    };
    assert!(!over(State::SynSent, 20) && over(State::SynSent, 22));
    assert!(!over(State::Established, 2 * 3_600 + 60));
    assert!(over(State::Established, 3 * 3_600));
    assert!(!over(State::Unanswered, 30) && over(State::Unanswered, 32));
    assert!(!over(State::Answered, 60) && over(State::Answered, 62));
    assert!(over(State::Reset, 0) && over(State::Finished, 0) && over(State::Closed, 0));
}

#[test]
fn every_state_survives_its_byte() {
    for state in State::ALL {
        assert_eq!(State::from_byte(state.to_byte()), state);
    }
    for byte in 11..=u8::MAX {
        assert_eq!(State::from_byte(byte), State::Closed);
    }
}

#[test]
fn datagrams_stay_until_they_time_out_or_their_backend_is_gone() {
    let decide = |known| decide(known, Protocol::Udp, Flags(0), Openers::First);
    assert_eq!(decide(None), Decision::Choose);
    for state in [State::Unanswered, State::Answered] {
        assert_eq!(decide(Some(known(state, 0, true))), Decision::Stay(state));
        assert_eq!(decide(Some(known(state, 100_000, true))), Decision::Choose);
        assert_eq!(decide(Some(known(state, 0, false))), Decision::Choose);
        for bits in 0..=u8::MAX {
            assert_eq!(step(state, Flags(bits), Sender::Client), state);
            assert_eq!(step(state, Flags(bits), Sender::Backend), State::Answered);
        }
    }
}

/// The whole machine for TCP, written down a second time as a table: for each state the next one
/// after the client's and after the backend's SYN, SYN+ACK, FIN, and anything else.
#[test]
fn every_segment_in_every_state_leads_where_the_table_says() {
    use State::{
        BackendFinished as Bf, ClientFinished as Cf, Closed as C, Established as E, Finished as F,
        Reset as R, SynReceived as Sr, SynSent as Ss,
    };
    // State; client: SYN, SYN+ACK, FIN, other; backend: the same.
    let table = [
        (C, [C, C, C, C], [C, C, C, C]),
        (Ss, [Ss, Ss, Ss, Ss], [Ss, Sr, Ss, Ss]),
        (Sr, [Sr, E, Cf, E], [Sr, Sr, Bf, Sr]),
        (E, [E, E, Cf, E], [E, E, Bf, E]),
        (Cf, [Cf, Cf, Cf, Cf], [Cf, Cf, F, Cf]),
        (Bf, [Bf, Bf, F, Bf], [Bf, Bf, Bf, Bf]),
        (F, [F, F, F, F], [F, F, F, F]),
        (R, [E, E, E, E], [E, E, E, E]),
    ];
    for (state, by_client, by_backend) in table {
        for bits in 0..=u8::MAX {
            let flags = Flags(bits);
            let column = match (bits & 2 != 0, bits & 16 != 0, bits & 1 != 0) {
                (true, false, false) => 0,
                (true, true, false) => 1,
                (_, _, true) => 2,
                _ => 3,
            };
            for (sender, row) in [(Sender::Client, by_client), (Sender::Backend, by_backend)] {
                let reset = bits & 4 != 0 && state != C;
                let expected = if reset { R } else { row[column] };
                assert_eq!(step(state, flags, sender), expected, "{state:?} {bits:#04x}");
            }
        }
    }
}

/// Every state, every combination of flags, both senders: a closed entry never comes to life by
/// itself, and nothing but a reset leaves the finished state.
#[test]
fn no_segment_revives_a_closed_entry() {
    for bits in 0..=u8::MAX {
        let flags = Flags(bits);
        for sender in [Sender::Client, Sender::Backend] {
            assert_eq!(step(State::Closed, flags, sender), State::Closed);
            assert_eq!(step(State::Failed, flags, sender), State::Failed);
            let finished = if flags.rst() { State::Reset } else { State::Finished };
            assert_eq!(step(State::Finished, flags, sender), finished);
            for state in State::ALL {
                let next = step(state, flags, sender);
                let datagrams = matches!(state, State::Unanswered | State::Answered);
                let ended = matches!(state, State::Closed | State::Failed);
                let reset = flags.rst() && !ended && !datagrams;
                assert_eq!(next == State::Reset, reset, "{state:?} {flags:?} {sender:?}");
            }
        }
    }
}
